/* Event sets and GPM samples: the functions that give their caller an object to keep. */
#include <stdlib.h>

#include "answer.h"

/* ------------------------------------------------------------------ events */

struct event_set {
    uint64_t types[SLOTS]; /* what each card was registered for */
    uint32_t seen;         /* how many of the events ever queued were looked at */
};

nvmlReturn_t nvmlEventSetCreate(struct event_set **set)
{
    CHECK(enter(F_nvmlEventSetCreate));
    if (!set)
        return INVALID_ARGUMENT;
    *set = calloc(1, sizeof **set);
    if (!*set)
        return MEMORY;
    (*set)->seen = __atomic_load_n(&control->event_head, __ATOMIC_ACQUIRE);
    return SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(struct event_set *set)
{
    CHECK(enter(F_nvmlEventSetFree));
    free(set);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, ull types, struct event_set *set)
{
    struct target at;
    uint64_t supported;
    CHECK(enter_device(F_nvmlDeviceRegisterEvents, device, &at));
    if (!set)
        return INVALID_ARGUMENT;
    CHECK(measure(at.gpu, M_event_types, now_us(), &supported));
    if (types & ~supported)
        return NOT_SUPPORTED;
    set->types[at.slot] |= types;
    return SUCCESS;
}

static int next_event(struct event_set *set, uint32_t head, struct event_data *out)
{
    if (head - set->seen > EVENTS)
        set->seen = head - EVENTS; /* older ones were overwritten */
    while (set->seen != head) {
        const struct event *event = &control->events[set->seen++ % EVENTS];
        if (event->slot >= SLOTS || !(set->types[event->slot] & event->type))
            continue;
        *out = (struct event_data){handle_of(event->slot, 0), event->type, event->data, event->gpu_instance,
                                   event->compute_instance};
        return 1;
    }
    return 0;
}

static int any_lost(const struct event_set *set)
{
    for (uint slot = 0; slot < SLOTS; slot++)
        if (set->types[slot] && (control->gpus[slot].lost || !control->gpus[slot].present))
            return 1;
    return 0;
}

nvmlReturn_t nvmlEventSetWait_v2(struct event_set *set, struct event_data *out, uint timeout_ms)
{
    CHECK(enter(F_nvmlEventSetWait_v2));
    if (!set || !out)
        return INVALID_ARGUMENT;
    uint64_t deadline = monotonic_ms() + timeout_ms;
    for (;;) {
        uint32_t head = __atomic_load_n(&control->event_head, __ATOMIC_ACQUIRE);
        if (next_event(set, head, out))
            return SUCCESS;
        if (any_lost(set))
            return GPU_IS_LOST;
        uint64_t now = monotonic_ms();
        if (now >= deadline)
            return TIMEOUT;
        nap(&control->event_head, head, deadline - now);
    }
}

/* ------------------------------------------------------------------ GPM */

struct gpm_sample {
    uint32_t taken, slot;
    uint64_t at_us;
};

#define PER_MIB (1.0 / 1048576)
static const struct { uint id; enum metric metric; double scale; const char *name, *unit; } gpm[] = {
    {1, M_graphics_active, 1, "graphics_util", "%"}, {2, M_sm_active, 1, "sm_util", "%"},
    {3, M_sm_occupancy, 1, "sm_occupancy", "%"},     {5, M_tensor_active, 1, "any_tensor_util", "%"},
    {10, M_dram_active, 1, "dram_bw_util", "%"},     {11, M_fp64_active, 1, "fp64_util", "%"},
    {12, M_fp32_active, 1, "fp32_util", "%"},        {13, M_fp16_active, 1, "fp16_util", "%"},
    {20, M_pcie_tx_bytes, PER_MIB, "pcie_tx", "MiB/s"},      {21, M_pcie_rx_bytes, PER_MIB, "pcie_rx", "MiB/s"},
    {60, M_nvlink_rx_bytes, PER_MIB, "nvlink_rx", "MiB/s"},  {61, M_nvlink_tx_bytes, PER_MIB, "nvlink_tx", "MiB/s"},
};

static nvmlReturn_t gpm_supported(const struct gpu *gpu, uint64_t *supported)
{
    nvmlReturn_t result = measure(gpu, M_gpm_supported, now_us(), supported);
    if (result == NOT_SUPPORTED) {
        *supported = 0;
        return SUCCESS;
    }
    return result;
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, struct gpm_support *out)
{
    struct target at;
    uint64_t supported;
    CHECK(enter_device(F_nvmlGpmQueryDeviceSupport, device, &at));
    if (!out)
        return INVALID_ARGUMENT;
    if (out->version != 1)
        return ARGUMENT_VERSION_MISMATCH;
    CHECK(gpm_supported(at.gpu, &supported));
    out->supported = (uint)supported;
    return SUCCESS;
}

nvmlReturn_t nvmlGpmSampleAlloc(struct gpm_sample **sample)
{
    CHECK(enter(F_nvmlGpmSampleAlloc));
    if (!sample)
        return INVALID_ARGUMENT;
    *sample = calloc(1, sizeof **sample);
    return *sample ? SUCCESS : MEMORY;
}

nvmlReturn_t nvmlGpmSampleFree(struct gpm_sample *sample)
{
    CHECK(enter(F_nvmlGpmSampleFree));
    free(sample);
    return SUCCESS;
}

static nvmlReturn_t take(const struct target *at, struct gpm_sample *sample)
{
    uint64_t supported;
    CHECK(gpm_supported(at->gpu, &supported));
    if (!supported)
        return NOT_SUPPORTED;
    if (!sample)
        return INVALID_ARGUMENT;
    *sample = (struct gpm_sample){1, at->slot, now_us()};
    return SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, struct gpm_sample *sample)
{
    struct target at;
    CHECK(enter_device(F_nvmlGpmSampleGet, device, &at));
    return take(&at, sample);
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, uint gpu_instance, struct gpm_sample *sample)
{
    struct target at;
    CHECK(enter_device(F_nvmlGpmMigSampleGet, device, &at));
    for (uint i = 0; at.gpu->mig_current && i < at.gpu->instance_count; i++)
        if (at.gpu->instances[i].gpu_instance == gpu_instance)
            return take(&at, sample);
    return INVALID_ARGUMENT;
}

static nvmlReturn_t gpm_value(const struct gpm_sample *from, const struct gpm_sample *to, struct gpm_metric *out)
{
    for (size_t i = 0; i < sizeof gpm / sizeof *gpm; i++) {
        if (gpm[i].id != out->id)
            continue;
        out->short_name = out->long_name = gpm[i].name;
        out->unit = gpm[i].unit;
        CHECK(measure_mean(&control->gpus[to->slot], gpm[i].metric, from->at_us, to->at_us, &out->value));
        out->value *= gpm[i].scale;
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

nvmlReturn_t nvmlGpmMetricsGet(struct gpm_metrics *query)
{
    if (!query || !query->first || !query->second) {
        CHECK(enter(F_nvmlGpmMetricsGet));
        return INVALID_ARGUMENT;
    }
    const struct gpm_sample *from = query->first, *to = query->second;
    CHECK(enter_slot(F_nvmlGpmMetricsGet, to->slot));
    if (query->version != 1)
        return ARGUMENT_VERSION_MISMATCH;
    if (!from->taken || !to->taken || from->slot != to->slot || to->at_us < from->at_us)
        return INVALID_ARGUMENT;
    for (uint i = 0; i < query->count; i++)
        query->metrics[i].result = gpm_value(from, to, &query->metrics[i]);
    return SUCCESS;
}

/* The calls that fill an array: field values, sample buffers, processes. */
#include <string.h>

#include "answer.h"

/* ------------------------------------------------------------------ field values */

enum scope { ANY, LINK, POWER };
struct field { uint id; enum metric metric; uint divisor, type; enum scope scope; };
#define FIELD(id, metric, divisor, type, scope) {id, M_##metric, divisor, TYPE_##type, scope},
static const struct field fields[] = {
#include "fields.def"
};
#undef FIELD

static nvmlReturn_t field_number(const struct gpu *gpu, const struct field *field, uint scope, uint64_t *value)
{
    enum metric metric = field->metric;
    uint64_t links = 1;
    if (field->scope == POWER && scope == 1 && field->id == 185)
        metric = M_module_power_mw;
    else if (field->scope == POWER && scope == 2 && field->id == 185)
        metric = M_memory_power_mw;
    else if (field->scope == POWER && scope != 0)
        return NOT_SUPPORTED;
    if (field->scope == LINK && scope != NONE_U32) {
        CHECK(measure_now(gpu, M_nvlink_links, &links));
        NEED(scope < links);
    }
    CHECK(measure_now(gpu, metric, value));
    *value = *value / field->divisor / links;
    return SUCCESS;
}

static nvmlReturn_t field_value(const struct gpu *gpu, struct field_value *out)
{
    uint64_t value;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].id != out->id)
            continue;
        CHECK(field_number(gpu, &fields[i], out->scope, &value));
        out->type = fields[i].type;
        if (out->type == TYPE_UINT)
            out->value.u = (uint)value;
        else
            out->value.ull_ = value;
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, struct field_value *values)
{
    ENTER(nvmlDeviceGetFieldValues);
    NEED(count > 0 && values);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = (int64_t)now_us();
        values[i].latency_us = 20;
        values[i].result = field_value(at.gpu, &values[i]);
    }
    return SUCCESS;
}

/* ------------------------------------------------------------------ sample buffers */

/* The samples the card holds at `now`, oldest first: those given, or one each period. The values of those up to
 * `seen_us` are left out: nobody asks for them, and a driver that copies its buffer pays nothing for them. */
static nvmlReturn_t buffer(const struct gpu *gpu, uint type, enum metric metric, uint64_t seen_us,
                           struct sample out[SAMPLES], uint *count)
{
    const struct series *series = &gpu->series[type];
    uint64_t period = control->sample_period_us, value, last = now_us() / period * period;
    *count = SAMPLES;
    CHECK(measure(gpu, metric, last, &value));
    if (series->given) {
        *count = series->count;
        memcpy(out, series->samples, *count * sizeof *out);
        return SUCCESS;
    }
    for (uint i = 0; i < SAMPLES; i++) {
        out[i].time_us = last - (SAMPLES - 1 - i) * period;
        if (out[i].time_us <= seen_us)
            continue;
        CHECK(measure(gpu, metric, out[i].time_us, &out[i].value));
    }
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, uint type, ull last_seen_us, uint *value_type, uint *count,
                                  struct timed_value *out)
{
    static const enum metric metrics[SAMPLING_TYPES] = {
        M_power_mw, M_gpu_utilization, M_memory_utilization, M_encoder_utilization, M_decoder_utilization,
        M_sm_clock, M_memory_clock, METRICS, M_jpeg_utilization, M_ofa_utilization,
    };
    struct sample held[SAMPLES];
    uint in_buffer, copied = 0;
    ENTER(nvmlDeviceGetSamples);
    NEED(type < SAMPLING_TYPES && value_type && count);
    if (metrics[type] == METRICS)
        return NOT_SUPPORTED; /* module power */
    CHECK(buffer(at.gpu, type, metrics[type], last_seen_us, held, &in_buffer));
    *value_type = TYPE_UINT;
    if (!out) {
        *count = SAMPLES;
        return SUCCESS;
    }
    for (uint i = 0; i < in_buffer && copied < *count; i++)
        if (held[i].time_us > last_seen_us) {
            out[copied].time_us = held[i].time_us;
            out[copied++].value.ull_ = held[i].value;
        }
    *count = copied;
    return copied ? SUCCESS : NOT_FOUND;
}

/* ------------------------------------------------------------------ processes */

enum { COMPUTE = 0, GRAPHICS = 1, NEITHER = 2 };

static int belongs(const struct target *at, const struct process *process, uint kind)
{
    return process->graphics == kind && (!at->instance || process->gpu_instance == at->instance->gpu_instance);
}

static nvmlReturn_t processes(const struct target *at, uint kind, uint *count, struct process_info *out)
{
    uint found = 0, room = out && count ? *count : 0, known = at->gpu->process_count;
    NEED(count);
    for (uint i = 0; i < known && i < PROCESSES; i++) {
        const struct process *process = &at->gpu->processes[i];
        if (!belongs(at, process, kind))
            continue;
        if (found < room)
            out[found] = (struct process_info){process->pid, process->memory, process->gpu_instance,
                                               process->compute_instance};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define RUNNING(name, kind)                                                              \
    nvmlReturn_t name(nvmlDevice_t device, uint *count, struct process_info *out)        \
    {                                                                                    \
        ENTER(name);                                                                     \
        return processes(&at, kind, count, out);                                         \
    }
RUNNING(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE)
RUNNING(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
RUNNING(nvmlDeviceGetMPSComputeRunningProcesses_v3, NEITHER)

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, struct process_utilization *out, uint *count,
                                             ull last_seen_us)
{
    uint64_t stamp;
    ENTER(nvmlDeviceGetProcessUtilization);
    NEED(count);
    CHECK(measure_now(at.gpu, M_gpu_utilization, &stamp)); /* not while MIG is on */
    stamp = now_us() / control->sample_period_us * control->sample_period_us;
    uint known = at.gpu->process_count, room = out ? *count : 0;
    if (!known || stamp <= last_seen_us)
        return NOT_FOUND;
    *count = known;
    if (room < known)
        return INSUFFICIENT_SIZE;
    for (uint i = 0; i < known && i < PROCESSES; i++) {
        const struct process *process = &at.gpu->processes[i];
        out[i] = (struct process_utilization){process->pid, stamp, process->sm, process->mem, process->enc,
                                              process->dec};
    }
    return SUCCESS;
}

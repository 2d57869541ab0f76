/* The exported functions, apart from events and GPM. Each is: enter, check the arguments, answer. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "model.h"

#define CHECK(call)                  \
    do {                             \
        nvmlReturn_t result = (call); \
        if (result)                  \
            return result;           \
    } while (0)
#define ENTER(name) \
    struct target at; \
    CHECK(enter_device(F_##name, device, &at))
#define NEED(condition)              \
    do {                             \
        if (!(condition))            \
            return INVALID_ARGUMENT; \
    } while (0)

static nvmlReturn_t measure_now(const struct gpu *gpu, enum metric metric, uint64_t *value)
{
    return measure(gpu, metric, now_us(), value);
}

static nvmlReturn_t measure_uint(const struct gpu *gpu, enum metric metric, uint *value)
{
    uint64_t wide;
    NEED(value);
    CHECK(measure_now(gpu, metric, &wide));
    *value = (uint)wide;
    return SUCCESS;
}

static nvmlReturn_t text(char *out, uint size, const char *value)
{
    NEED(out);
    if (strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

/* ------------------------------------------------------------------ library and system */

nvmlReturn_t nvmlInit_v2(void) { return begin(F_nvmlInit_v2); }
nvmlReturn_t nvmlInitWithFlags(uint flags) { (void)flags; return begin(F_nvmlInitWithFlags); }
nvmlReturn_t nvmlShutdown(void) { return finish(); }

const char *nvmlErrorString(nvmlReturn_t result)
{
    static const char *const names[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "The operating system has blocked the request.", "RM has detected an NVML/RM version mismatch.",
        "In use by another client", "Insufficient Memory", "No data",
    };
    return result < sizeof names / sizeof *names ? names[result] : "Unknown Error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, uint size)
{
    CHECK(enter(F_nvmlSystemGetDriverVersion));
    return text(version, size, control->driver);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, uint size)
{
    CHECK(enter(F_nvmlSystemGetNVMLVersion));
    return text(version, size, control->nvml);
}

static nvmlReturn_t cuda_version(int *version)
{
    NEED(version);
    *version = control->cuda_version;
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    CHECK(enter(F_nvmlSystemGetCudaDriverVersion));
    return cuda_version(version);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    CHECK(enter(F_nvmlSystemGetCudaDriverVersion_v2));
    return cuda_version(version);
}

nvmlReturn_t nvmlSystemGetProcessName(uint pid, char *name, uint size)
{
    char path[64];
    CHECK(enter(F_nvmlSystemGetProcessName));
    NEED(name && size);
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return NOT_FOUND;
    size_t got = fread(name, 1, size - 1, file);
    fclose(file);
    name[got] = '\0';
    return SUCCESS;
}

/* ------------------------------------------------------------------ handles and identity */

nvmlReturn_t nvmlDeviceGetCount_v2(uint *count)
{
    uint order[SLOTS];
    CHECK(enter(F_nvmlDeviceGetCount_v2));
    NEED(count);
    *count = visible(order);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(uint index, nvmlDevice_t *device)
{
    uint order[SLOTS], slot = SLOTS;
    if (control && index < visible(order))
        slot = order[index];
    if (slot == SLOTS)
        CHECK(enter(F_nvmlDeviceGetHandleByIndex_v2));
    NEED(device && slot < SLOTS);
    CHECK(enter_slot(F_nvmlDeviceGetHandleByIndex_v2, slot));
    *device = handle_of(slot, 0);
    return SUCCESS;
}

/* The slot and instance with this UUID; instance 0 is the card. */
static int find_uuid(const char *uuid, uint *slot, uint *instance)
{
    uint order[SLOTS], count = visible(order);
    for (uint index = 0; index < count; index++) {
        const struct gpu *gpu = &control->gpus[order[index]];
        *slot = order[index];
        *instance = 0;
        if (strcmp(gpu->uuid, uuid) == 0)
            return 1;
        for (*instance = 1; gpu->mig_current && *instance <= gpu->instance_count; ++*instance)
            if (strcmp(gpu->instances[*instance - 1].uuid, uuid) == 0)
                return 1;
    }
    return 0;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    uint slot, instance;
    if (!control || !uuid || !find_uuid(uuid, &slot, &instance)) {
        CHECK(enter(F_nvmlDeviceGetHandleByUUID));
        NEED(uuid && device);
        return NOT_FOUND;
    }
    CHECK(enter_slot(F_nvmlDeviceGetHandleByUUID, slot));
    NEED(device);
    *device = handle_of(slot, instance);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    uint domain, bus, number, order[SLOTS], count = control ? visible(order) : 0;
    int is_bus_id = bus_id && sscanf(bus_id, "%x:%x:%x", &domain, &bus, &number) == 3;
    for (uint index = 0; is_bus_id && index < count; index++) {
        const struct gpu *gpu = &control->gpus[order[index]];
        if (gpu->pci_domain != domain || gpu->pci_bus != bus || gpu->pci_device != number)
            continue;
        CHECK(enter_slot(F_nvmlDeviceGetHandleByPciBusId_v2, order[index]));
        NEED(device);
        *device = handle_of(order[index], 0);
        return SUCCESS;
    }
    CHECK(enter(F_nvmlDeviceGetHandleByPciBusId_v2));
    return is_bus_id ? NOT_FOUND : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, uint *index)
{
    uint order[SLOTS];
    ENTER(nvmlDeviceGetIndex);
    NEED(index);
    if (at.instance) {
        *index = (uint)(at.instance - at.gpu->instances);
        return SUCCESS;
    }
    uint count = visible(order);
    for (*index = 0; *index < count; ++*index)
        if (order[*index] == at.slot)
            return SUCCESS;
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, uint size)
{
    ENTER(nvmlDeviceGetUUID);
    return text(uuid, size, at.instance ? at.instance->uuid : at.gpu->uuid);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, uint size)
{
    ENTER(nvmlDeviceGetName);
    return text(name, size, at.instance ? at.instance->name : at.gpu->name);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, uint size)
{
    ENTER(nvmlDeviceGetSerial);
    return at.gpu->serial[0] ? text(serial, size, at.gpu->serial) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci_info *info)
{
    ENTER(nvmlDeviceGetPciInfo_v3);
    NEED(info);
    const struct gpu *gpu = at.gpu;
    *info = (struct pci_info){.domain = gpu->pci_domain, .bus = gpu->pci_bus, .device = gpu->pci_device,
                              .device_id = gpu->pci_device_id, .subsystem_id = gpu->pci_subsystem_id};
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    snprintf(info->legacy_bus_id, sizeof info->legacy_bus_id, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    ENTER(nvmlDeviceGetCudaComputeCapability);
    CHECK(measure_uint(at.gpu, M_compute_major, (uint *)major));
    return measure_uint(at.gpu, M_compute_minor, (uint *)minor);
}

nvmlReturn_t nvmlDeviceGetAddressingMode(nvmlDevice_t device, struct addressing_mode *mode)
{
    ENTER(nvmlDeviceGetAddressingMode);
    NEED(mode);
    if (mode->version != ADDRESSING_MODE_V1)
        return ARGUMENT_VERSION_MISMATCH;
    return measure_uint(at.gpu, M_addressing_mode, &mode->value);
}

/* ------------------------------------------------------------------ one metric, one unsigned int */

#define ONE_UINT(name, metric)                            \
    nvmlReturn_t name(nvmlDevice_t device, uint *value)   \
    {                                                     \
        ENTER(name);                                      \
        return measure_uint(at.gpu, M_##metric, value);   \
    }
ONE_UINT(nvmlDeviceGetMinorNumber, minor_number)
ONE_UINT(nvmlDeviceGetBrand, brand)
ONE_UINT(nvmlDeviceGetArchitecture, architecture)
ONE_UINT(nvmlDeviceGetPersistenceMode, persistence_mode)
ONE_UINT(nvmlDeviceGetNumaNodeId, numa_node)
ONE_UINT(nvmlDeviceGetPowerUsage, power_mw)
ONE_UINT(nvmlDeviceGetPowerManagementLimit, power_limit_mw)
ONE_UINT(nvmlDeviceGetPowerManagementDefaultLimit, default_power_limit_mw)
ONE_UINT(nvmlDeviceGetEnforcedPowerLimit, enforced_power_limit_mw)
ONE_UINT(nvmlDeviceGetFanSpeed, fan_speed)
ONE_UINT(nvmlDeviceGetNumFans, fan_count)
ONE_UINT(nvmlDeviceGetPerformanceState, performance_state)
ONE_UINT(nvmlDeviceGetRetiredPagesPendingStatus, retired_pages_pending)
ONE_UINT(nvmlDeviceGetPcieReplayCounter, pcie_replays)

#define ONE_ULONGLONG(name, metric)                         \
    nvmlReturn_t name(nvmlDevice_t device, ull *value)      \
    {                                                       \
        uint64_t wide;                                      \
        ENTER(name);                                        \
        NEED(value);                                        \
        CHECK(measure_now(at.gpu, M_##metric, &wide));      \
        *value = wide;                                      \
        return SUCCESS;                                     \
    }
ONE_ULONGLONG(nvmlDeviceGetTotalEnergyConsumption, energy_mj)
ONE_ULONGLONG(nvmlDeviceGetCurrentClocksEventReasons, clocks_event_reasons)
ONE_ULONGLONG(nvmlDeviceGetCurrentClocksThrottleReasons, clocks_event_reasons)
ONE_ULONGLONG(nvmlDeviceGetSupportedClocksEventReasons, supported_clocks_event_reasons)
ONE_ULONGLONG(nvmlDeviceGetSupportedClocksThrottleReasons, supported_clocks_event_reasons)
ONE_ULONGLONG(nvmlDeviceGetSupportedEventTypes, event_types)

/* ------------------------------------------------------------------ readings of more than one value */

static nvmlReturn_t memory(const struct target *at, struct memory_info_v2 *info)
{
    uint64_t total, reserved, used;
    if (at->instance) {
        total = at->instance->memory_total;
        reserved = at->instance->memory_reserved;
        used = at->instance->memory_used;
    } else {
        CHECK(measure_now(at->gpu, M_memory_total, &total));
        CHECK(measure_now(at->gpu, M_memory_reserved, &reserved));
        CHECK(measure_now(at->gpu, M_memory_used, &used));
    }
    info->total = total;
    info->reserved = reserved;
    info->used = used;
    info->free = total > used + reserved ? total - used - reserved : 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory_info *info)
{
    struct memory_info_v2 now;
    ENTER(nvmlDeviceGetMemoryInfo);
    NEED(info);
    CHECK(memory(&at, &now));
    /* The old call counts what the driver keeps for itself as used. */
    *info = (struct memory_info){.total = now.total, .free = now.free, .used = now.used + now.reserved};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct memory_info_v2 *info)
{
    ENTER(nvmlDeviceGetMemoryInfo_v2);
    NEED(info);
    return info->version == MEMORY_INFO_V2 ? memory(&at, info) : ARGUMENT_VERSION_MISMATCH;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
    ENTER(nvmlDeviceGetUtilizationRates);
    NEED(rates);
    CHECK(measure_uint(at.gpu, M_gpu_utilization, &rates->gpu));
    return measure_uint(at.gpu, M_memory_utilization, &rates->memory);
}

static nvmlReturn_t coder(const struct target *at, enum metric metric, uint *value, uint *period_us)
{
    NEED(period_us);
    *period_us = (uint)control->sample_period_us;
    return measure_uint(at->gpu, metric, value);
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, uint *value, uint *period_us)
{
    ENTER(nvmlDeviceGetEncoderUtilization);
    return coder(&at, M_encoder_utilization, value, period_us);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, uint *value, uint *period_us)
{
    ENTER(nvmlDeviceGetDecoderUtilization);
    return coder(&at, M_decoder_utilization, value, period_us);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, uint sensor, uint *value)
{
    ENTER(nvmlDeviceGetTemperature);
    NEED(sensor == 0);
    return measure_uint(at.gpu, M_temperature, value);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, struct temperature_v1 *reading)
{
    ENTER(nvmlDeviceGetTemperatureV);
    NEED(reading);
    if (reading->version != TEMPERATURE_V1)
        return ARGUMENT_VERSION_MISMATCH;
    NEED(reading->sensor == 0);
    return measure_uint(at.gpu, M_temperature, (uint *)&reading->temperature);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, uint *low, uint *high)
{
    ENTER(nvmlDeviceGetPowerManagementLimitConstraints);
    CHECK(measure_uint(at.gpu, M_min_power_limit_mw, low));
    return measure_uint(at.gpu, M_max_power_limit_mw, high);
}

nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, uint fan, uint *speed)
{
    uint fans;
    ENTER(nvmlDeviceGetFanSpeed_v2);
    CHECK(measure_uint(at.gpu, M_fan_count, &fans));
    NEED(fan < fans);
    return measure_uint(at.gpu, M_fan_speed, speed);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, uint type, uint *mhz)
{
    static const enum metric clocks[] = {M_graphics_clock, M_sm_clock, M_memory_clock, M_video_clock};
    ENTER(nvmlDeviceGetClockInfo);
    NEED(type < 4);
    return measure_uint(at.gpu, clocks[type], mhz);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, uint type, uint *mhz)
{
    static const enum metric clocks[] = {M_max_graphics_clock, M_max_sm_clock, M_max_memory_clock,
                                         M_max_video_clock};
    ENTER(nvmlDeviceGetMaxClockInfo);
    NEED(type < 4);
    return measure_uint(at.gpu, clocks[type], mhz);
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, uint policy, struct violation *status)
{
    static const enum metric counters[] = {
        M_violation_power_ns, M_violation_thermal_ns, M_violation_sync_boost_ns,
        M_violation_board_limit_ns, M_violation_low_utilization_ns, M_violation_reliability_ns,
    };
    uint64_t value;
    ENTER(nvmlDeviceGetViolationStatus);
    NEED(status && policy < 12);
    if (policy >= sizeof counters / sizeof *counters)
        return NOT_SUPPORTED;
    CHECK(measure_now(at.gpu, counters[policy], &value));
    *status = (struct violation){.reference_us = now_us(), .violation_ns = value};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, uint *current, uint *pending)
{
    ENTER(nvmlDeviceGetEccMode);
    CHECK(measure_uint(at.gpu, M_ecc_mode, current));
    return measure_uint(at.gpu, M_ecc_mode, pending);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, uint type, uint counter, ull *count)
{
    static const enum metric counts[2][2] = {{M_ecc_corrected_volatile, M_ecc_corrected_aggregate},
                                             {M_ecc_uncorrected_volatile, M_ecc_uncorrected_aggregate}};
    uint64_t value;
    ENTER(nvmlDeviceGetTotalEccErrors);
    NEED(count && type < 2 && counter < 2);
    CHECK(measure_now(at.gpu, counts[type][counter], &value));
    *count = value;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, uint *corrected, uint *uncorrected, uint *pending,
                                       uint *failed)
{
    ENTER(nvmlDeviceGetRemappedRows);
    CHECK(measure_uint(at.gpu, M_remapped_rows_corrected, corrected));
    CHECK(measure_uint(at.gpu, M_remapped_rows_uncorrected, uncorrected));
    CHECK(measure_uint(at.gpu, M_remapped_rows_pending, pending));
    return measure_uint(at.gpu, M_remapped_rows_failure, failed);
}

static nvmlReturn_t retired_pages(const struct target *at, uint cause, uint *count, ull *addresses, ull *times)
{
    uint pages;
    NEED(cause < 2 && count);
    CHECK(measure_uint(at->gpu, cause ? M_retired_pages_dbe : M_retired_pages_sbe, &pages));
    uint room = addresses ? *count : 0;
    *count = pages;
    if (room < pages)
        return INSUFFICIENT_SIZE;
    for (uint page = 0; page < pages; page++) {
        addresses[page] = 0x10000u * (page + 1);
        if (times)
            times[page] = now_us() / 1000000u;
    }
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, uint cause, uint *count, ull *addresses)
{
    ENTER(nvmlDeviceGetRetiredPages);
    return retired_pages(&at, cause, count, addresses, NULL);
}

nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, uint cause, uint *count, ull *addresses, ull *times)
{
    ENTER(nvmlDeviceGetRetiredPages_v2);
    return retired_pages(&at, cause, count, addresses, times);
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, uint direction, uint *kib_per_second)
{
    /* The real call measures over 20 ms, and its caller waits for that. */
    const struct timespec window = {0, 20000000};
    uint64_t before = now_us();
    double rate;
    ENTER(nvmlDeviceGetPcieThroughput);
    NEED(direction < 2 && kib_per_second);
    enum metric metric = direction ? M_pcie_rx_bytes : M_pcie_tx_bytes;
    CHECK(measure_mean(at.gpu, metric, before - 20000, before, &rate));
    nanosleep(&window, NULL);
    *kib_per_second = (uint)(rate / 1024);
    return SUCCESS;
}

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
    if (field->scope == POWER && scope == 2 && field->id == 185)
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

/* The samples the card holds at `now`, oldest first: those given, or one each period. */
static nvmlReturn_t buffer(const struct gpu *gpu, uint type, enum metric metric, struct sample out[SAMPLES], uint *count)
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
    CHECK(buffer(at.gpu, type, metrics[type], held, &in_buffer));
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

/* ------------------------------------------------------------------ MIG */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, uint *current, uint *pending)
{
    ENTER(nvmlDeviceGetMigMode);
    NEED(current && pending);
    if (!at.gpu->mig_capable)
        return NOT_SUPPORTED;
    *current = at.gpu->mig_current;
    *pending = at.gpu->mig_pending;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, uint *count)
{
    ENTER(nvmlDeviceGetMaxMigDeviceCount);
    NEED(count);
    *count = at.gpu->mig_capable ? INSTANCES : 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, uint index, nvmlDevice_t *instance)
{
    ENTER(nvmlDeviceGetMigDeviceHandleByIndex);
    if (!at.gpu->mig_capable)
        return NOT_SUPPORTED;
    NEED(instance && index < INSTANCES);
    if (!at.gpu->mig_current || index >= at.gpu->instance_count)
        return NOT_FOUND;
    *instance = handle_of(at.slot, index + 1);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *parent)
{
    ENTER(nvmlDeviceGetDeviceHandleFromMigDeviceHandle);
    NEED(parent && at.instance);
    *parent = handle_of(at.slot, 0);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, uint *is_instance)
{
    ENTER(nvmlDeviceIsMigDeviceHandle);
    NEED(is_instance);
    *is_instance = at.instance != NULL;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, uint *id)
{
    ENTER(nvmlDeviceGetGpuInstanceId);
    NEED(id && at.instance);
    *id = at.instance->gpu_instance;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, uint *id)
{
    ENTER(nvmlDeviceGetComputeInstanceId);
    NEED(id && at.instance);
    *id = at.instance->compute_instance;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, struct attributes *out)
{
    ENTER(nvmlDeviceGetAttributes_v2);
    NEED(out);
    if (!at.instance)
        return NOT_SUPPORTED;
    *out = (struct attributes){.multiprocessors = at.instance->multiprocessors, .copy_engines = 1,
                               .gpu_slices = at.instance->slices, .compute_slices = at.instance->slices,
                               .memory_mib = at.instance->memory_total >> 20};
    return SUCCESS;
}

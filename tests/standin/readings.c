/* What a card reads now: one value, or a few, a call. */
#include <time.h>

#include "answer.h"

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
    double rate;
    ENTER(nvmlDeviceGetPcieThroughput);
    uint64_t before = now_us();
    NEED(direction < 2 && kib_per_second);
    enum metric metric = direction ? M_pcie_rx_bytes : M_pcie_tx_bytes;
    CHECK(measure_mean(at.gpu, metric, before - 20000, before, &rate));
    nanosleep(&window, NULL);
    *kib_per_second = (uint)(rate / 1024);
    return SUCCESS;
}

/* The few NVML types that cross the border, laid out as the ctypes structures of nvidia-ml-py are. */
#ifndef STANDIN_NVML_TYPES_H
#define STANDIN_NVML_TYPES_H
#include <stdint.h>

typedef unsigned int uint;
typedef unsigned long long ull;
typedef uint nvmlReturn_t;
typedef void *nvmlDevice_t;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15,
    MEMORY = 20, ARGUMENT_VERSION_MISMATCH = 25, GPU_NOT_FOUND = 28,
};
enum { TYPE_DOUBLE = 0, TYPE_UINT = 1, TYPE_ULONG = 2, TYPE_ULONGLONG = 3 };
enum { MEMORY_INFO_V2 = 0x02000028, TEMPERATURE_V1 = 0x0100000c, ADDRESSING_MODE_V1 = 0x01000008 };
static const uint NONE_U32 = 0xffffffffu; /* no GPU instance; all links */

struct memory_info { ull total, free, used; };
struct memory_info_v2 { uint version; ull total, reserved, free, used; };
struct pci_info {
    char legacy_bus_id[16];
    uint domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct utilization { uint gpu, memory; };
struct temperature_v1 { uint version, sensor; int temperature; };
struct addressing_mode { uint version, value; };
union value { double d; uint u; unsigned long ul; ull ull_; long long sll; };
struct timed_value { ull time_us; union value value; };
struct field_value {
    uint32_t id, scope;
    int64_t timestamp, latency_us;
    uint type;
    nvmlReturn_t result;
    union value value;
};
struct violation { ull reference_us, violation_ns; };
struct process_info { uint pid; ull memory; uint gpu_instance, compute_instance; };
struct process_utilization { uint pid; ull time_us; uint sm, mem, enc, dec; };
struct attributes {
    uint multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    ull memory_mib;
};
struct event_data { nvmlDevice_t device; ull type, data; uint gpu_instance, compute_instance; };
struct gpm_metric {
    uint id;
    nvmlReturn_t result;
    double value;
    const char *short_name, *long_name, *unit;
};
struct gpm_metrics { uint version, count; void *first, *second; struct gpm_metric metrics[]; };
struct gpm_support { uint version, supported; };
#endif

/* The control file: one fixed layout, written by control.py, read here at every call.
 * control.py holds the same layout in ctypes; `size` is compared when a process attaches. */
#ifndef STANDIN_CONTROL_H
#define STANDIN_CONTROL_H
#include <stdint.h>

enum { STANDIN_MAGIC = 0x4d4c564e, STANDIN_VERSION = 1 };
enum { SLOTS = 16, INSTANCES = 7, PROCESSES = 32, EVENTS = 64, SAMPLES = 120, SAMPLING_TYPES = 10 };

#define FUNCTION(name, mig) F_##name,
enum function {
#include "functions.def"
    FUNCTIONS
};
#undef FUNCTION

#define METRIC(name, kind, hidden) M_##name,
enum metric {
#include "metrics.def"
    METRICS
};
#undef METRIC

/* What a function does to its caller, in this order: count the call, sleep, hang, crash, fail. */
struct fault {
    uint32_t calls;
    uint32_t slow_ms;
    uint32_t hang;   /* while not 0; a futex */
    int32_t crashes; /* how often it still ends its process with SIGSEGV; -1: always */
    int32_t errors;  /* how often it still answers `error`; -1: always */
    int32_t error;   /* an nvmlReturn_t */
};

struct reading {
    double low, high; /* see metrics.def */
    double base;      /* where a counter starts */
    double hold_real;
    uint64_t hold;
    uint32_t held;
    int32_t error; /* given instead of a value */
};

/* load(t) = mean + amplitude * sin(2 pi t / period + phase); the integral up to `since` is kept, so that
 * counters go on from where they were when the load is changed; the load before it stays, for the samples. */
struct load {
    double mean, amplitude, period, phase;
    double born, since, integral; /* seconds since the epoch, the same, load seconds */
};

struct instance {
    char uuid[96], name[96];
    uint32_t gpu_instance, compute_instance, slices, multiprocessors;
    uint64_t memory_total, memory_reserved, memory_used;
};

struct process {
    uint32_t pid, graphics;
    uint64_t memory;
    uint32_t gpu_instance, compute_instance;
    uint32_t sm, mem, enc, dec;
};

struct sample {
    uint64_t time_us, value;
};

struct series {
    uint32_t given, count; /* given: these samples instead of those computed from the load */
    struct sample samples[SAMPLES];
};

struct gpu {
    uint32_t present;
    int32_t lost; /* the nvmlReturn_t of every call, or 0 */
    uint32_t mig_capable, mig_current, mig_pending;
    uint32_t instance_count, process_count, active_load;
    uint32_t pci_domain, pci_bus, pci_device, pci_device_id, pci_subsystem_id, reserved;
    char uuid[96], name[96], serial[32]; /* an empty serial: not supported */
    struct load loads[2];                /* the other one is written, then active_load flips */
    struct reading readings[METRICS];
    struct fault faults[FUNCTIONS];
    struct instance instances[INSTANCES];
    struct process processes[PROCESSES];
    struct series series[SAMPLING_TYPES];
};

struct event {
    uint32_t slot, gpu_instance, compute_instance, reserved;
    uint64_t type, data;
};

struct control {
    uint32_t magic, version, size;
    uint32_t driver_epoch;   /* goes up with every reload */
    int32_t driver_error;    /* what init says while the driver is away, or 0 */
    int32_t stale_error;     /* what a process gets that began under an older epoch */
    uint32_t live;           /* 1: plugging and order are seen at once; 0: at the next init */
    uint32_t count;
    uint32_t order[SLOTS];   /* index -> slot */
    uint32_t event_head;     /* how many events were ever queued; a futex */
    uint32_t last_function, last_slot, last_pid;
    int32_t cuda_version;
    uint32_t reserved;
    uint64_t clock_us;       /* a fixed time, or 0 for CLOCK_REALTIME */
    uint64_t sample_period_us;
    char driver[80], nvml[80];
    struct fault faults[FUNCTIONS]; /* whatever the GPU */
    struct event events[EVENTS];
    struct gpu gpus[SLOTS];
};

#endif

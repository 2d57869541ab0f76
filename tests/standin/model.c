/* Control file, faults, handles and the values of the cards over time. See model.h. */
#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct control *control;

/* What this process took at init. */
static struct {
    uint references, epoch, count;
    uint order[SLOTS];
} view;

#define FUNCTION(name, mig) mig,
#define MIG 1
#define CARD 0
static const unsigned char for_instances[FUNCTIONS] = {
#include "functions.def"
};
#undef FUNCTION

enum kind { GAUGE, STEP, COUNTER };
#define METRIC(name, kind, hidden) {kind, hidden},
static const struct { enum kind kind; int hidden_by_mig; } metrics[METRICS] = {
#include "metrics.def"
};
#undef METRIC

#define READ(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)

/* ------------------------------------------------------------------ time */

uint64_t now_us(void)
{
    uint64_t fixed = READ(control->clock_us);
    struct timespec now;
    if (fixed)
        return fixed;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

void nap(const uint32_t *word, uint32_t value, uint64_t longest_ms)
{
    /* control.py wakes the futex where it knows the system call; elsewhere this is a slow poll. */
    uint64_t ms = longest_ms < 250 ? longest_ms : 250;
    struct timespec pause = {0, (long)ms * 1000000L};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &pause, NULL, 0);
}

/* ------------------------------------------------------------------ attaching, init, shutdown */

static nvmlReturn_t refuse(const char *why, const char *path)
{
    fprintf(stderr, "stand-in libnvidia-ml.so.1: %s: %s\n", why, path ? path : "GPU_MONITOR_STANDIN");
    return DRIVER_NOT_LOADED;
}

nvmlReturn_t attach(void)
{
    const char *path = getenv("GPU_MONITOR_STANDIN");
    struct stat file;
    if (control)
        return SUCCESS;
    if (!path)
        return refuse("not set in the environment", NULL);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &file) != 0)
        return refuse(strerror(errno), path);
    struct control *map = MAP_FAILED;
    if ((size_t)file.st_size == sizeof *map)
        map = mmap(NULL, sizeof *map, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return refuse("not a control file of this size", path);
    if (map->magic != STANDIN_MAGIC || map->version != STANDIN_VERSION || map->size != sizeof *map)
        return refuse("a control file of another layout", path);
    control = map;
    return SUCCESS;
}

static uint present_order(uint order[SLOTS])
{
    uint found = 0, count = READ(control->count);
    for (uint index = 0; index < count && index < SLOTS; index++) {
        uint slot = control->order[index];
        if (slot < SLOTS && READ(control->gpus[slot].present))
            order[found++] = slot;
    }
    return found;
}

static nvmlReturn_t suffer(struct fault *fault);

static void note(enum function function, uint slot)
{
    __atomic_add_fetch(&control->faults[function].calls, 1, __ATOMIC_RELAXED);
    if (slot < SLOTS)
        __atomic_add_fetch(&control->gpus[slot].faults[function].calls, 1, __ATOMIC_RELAXED);
    control->last_slot = slot;
    control->last_pid = (uint32_t)getpid();
    __atomic_store_n(&control->last_function, function, __ATOMIC_RELEASE);
}

nvmlReturn_t begin(enum function function)
{
    nvmlReturn_t result = attach();
    if (result)
        return result;
    note(function, SLOTS);
    result = suffer(&control->faults[function]);
    if (!result)
        result = (nvmlReturn_t)READ(control->driver_error);
    if (result)
        return result;
    uint epoch = READ(control->driver_epoch);
    if (!view.references || view.epoch != epoch) {
        view.epoch = epoch;
        view.count = present_order(view.order);
    }
    view.references++;
    return SUCCESS;
}

nvmlReturn_t finish(void)
{
    if (!control || !view.references)
        return UNINITIALIZED;
    note(F_nvmlShutdown, SLOTS);
    nvmlReturn_t result = suffer(&control->faults[F_nvmlShutdown]);
    if (!result)
        view.references--;
    return result;
}

uint visible(uint order[SLOTS])
{
    if (READ(control->live))
        return present_order(order);
    memcpy(order, view.order, sizeof view.order);
    return view.count;
}

/* ------------------------------------------------------------------ faults */

/* Uses up one of the times that a fault still happens; below 0 they never end. */
static int happens(int32_t *left)
{
    int32_t times = READ(*left);
    while (times > 0)
        if (__atomic_compare_exchange_n(left, &times, times - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return 1;
    return times < 0;
}

static nvmlReturn_t suffer(struct fault *fault)
{
    uint32_t slow_ms = READ(fault->slow_ms), hang;
    int32_t error;
    if (slow_ms) {
        struct timespec pause = {slow_ms / 1000, (long)(slow_ms % 1000) * 1000000L};
        nanosleep(&pause, NULL);
    }
    while ((hang = READ(fault->hang)))
        nap(&fault->hang, hang, UINT64_MAX);
    if (happens(&fault->crashes)) {
        volatile int *volatile nowhere = NULL;
        *nowhere = 0; /* a real segmentation fault, as a broken driver library makes one */
    }
    error = READ(fault->error);
    return error && happens(&fault->errors) ? (nvmlReturn_t)error : SUCCESS;
}

static nvmlReturn_t ready(void)
{
    if (!control || !view.references)
        return UNINITIALIZED;
    if (view.epoch != READ(control->driver_epoch) || READ(control->driver_error))
        return (nvmlReturn_t)READ(control->stale_error);
    return SUCCESS;
}

nvmlReturn_t enter(enum function function)
{
    nvmlReturn_t result;
    if (control)
        note(function, SLOTS);
    result = ready();
    return result ? result : suffer(&control->faults[function]);
}

static nvmlReturn_t reach(enum function function, uint slot)
{
    struct gpu *gpu = &control->gpus[slot];
    nvmlReturn_t result = suffer(&control->faults[function]);
    if (!result)
        result = suffer(&gpu->faults[function]);
    if (result)
        return result;
    if (!READ(gpu->present))
        return GPU_IS_LOST;
    return (nvmlReturn_t)READ(gpu->lost);
}

nvmlReturn_t enter_slot(enum function function, uint slot)
{
    nvmlReturn_t result = ready();
    if (result)
        return result;
    note(function, slot);
    return reach(function, slot);
}

/* ------------------------------------------------------------------ handles */

/* A handle is a number, never a pointer that is followed: mark, epoch, slot, instance. */
enum { MARK = 0x5a };

nvmlDevice_t handle_of(uint slot, uint instance)
{
    uint64_t number = (uint64_t)MARK << 40 | (uint64_t)(view.epoch & 0xffff) << 16 | slot << 8 | instance;
    return (nvmlDevice_t)(uintptr_t)number;
}

nvmlReturn_t enter_device(enum function function, nvmlDevice_t device, struct target *target)
{
    uint64_t number = (uint64_t)(uintptr_t)device;
    uint slot = number >> 8 & 0xff, instance = number & 0xff;
    int is_handle = number >> 40 == MARK && slot < SLOTS && instance <= INSTANCES;
    if (control)
        note(function, is_handle ? slot : SLOTS);
    nvmlReturn_t result = ready();
    if (result)
        return result;
    if (!is_handle)
        return INVALID_ARGUMENT;
    if ((number >> 16 & 0xffff) != (view.epoch & 0xffff))
        return GPU_NOT_FOUND; /* taken before the driver was reloaded */
    target->slot = slot;
    target->gpu = &control->gpus[slot];
    target->instance = instance ? &target->gpu->instances[instance - 1] : NULL;
    result = reach(function, slot);
    if (result || !instance)
        return result;
    if (!READ(target->gpu->mig_current) || instance > READ(target->gpu->instance_count))
        return INVALID_ARGUMENT; /* the instance is gone */
    return for_instances[function] ? SUCCESS : NOT_SUPPORTED;
}

/* ------------------------------------------------------------------ values over time */

static double load_at(const struct load *load, double at)
{
    return load->mean + load->amplitude * sin(2 * M_PI * at / load->period + load->phase);
}

/* Load seconds from birth to `at`: the load integrated in closed form, so nothing need be remembered. */
static double load_integral(const struct load *load, double at)
{
    double turn = 2 * M_PI / load->period;
    double wave = cos(turn * load->since + load->phase) - cos(turn * at + load->phase);
    return load->integral + load->mean * (at - load->since) + load->amplitude / turn * wave;
}

/* The load in force at `at`: this one, or the one before it. */
static const struct load *load_of(const struct gpu *gpu, double at)
{
    uint active = READ(gpu->active_load) & 1;
    const struct load *now = &gpu->loads[active], *before = &gpu->loads[!active];
    return at < now->since && before->period > 0 ? before : now;
}

static double value_at(const struct gpu *gpu, enum metric metric, double at)
{
    const struct reading *reading = &gpu->readings[metric];
    const struct load *load = load_of(gpu, at);
    double span = reading->high - reading->low;
    switch (metrics[metric].kind) {
    case COUNTER:
        return reading->base + reading->low * (at - load->born) + span * load_integral(load, at);
    case STEP:
        return load_at(load, at) < 0.1 ? reading->low : reading->high;
    default:
        return reading->low + span * load_at(load, at);
    }
}

/* Whether there is a value; one that is held is there even where the card has none of its own. */
static nvmlReturn_t given(const struct gpu *gpu, enum metric metric)
{
    nvmlReturn_t error = (nvmlReturn_t)READ(gpu->readings[metric].error);
    if (READ(gpu->readings[metric].held))
        return SUCCESS;
    if (!error && metrics[metric].hidden_by_mig && READ(gpu->mig_current))
        error = NOT_SUPPORTED;
    return error;
}

nvmlReturn_t measure(const struct gpu *gpu, enum metric metric, uint64_t at_us, uint64_t *value)
{
    const struct reading *reading = &gpu->readings[metric];
    nvmlReturn_t error = given(gpu, metric);
    if (error)
        return error;
    if (READ(reading->held)) {
        *value = reading->hold;
        return SUCCESS;
    }
    double real = value_at(gpu, metric, (double)at_us / 1e6);
    *value = real > 0 ? (uint64_t)(real + 0.5) : 0;
    return SUCCESS;
}

nvmlReturn_t measure_mean(const struct gpu *gpu, enum metric metric, uint64_t from_us, uint64_t to_us, double *value)
{
    const struct reading *reading = &gpu->readings[metric];
    double from = (double)from_us / 1e6, to = (double)to_us / 1e6, seconds = to - from;
    nvmlReturn_t error = given(gpu, metric);
    if (error)
        return error;
    if (READ(reading->held))
        *value = reading->hold_real;
    else if (seconds <= 0) /* two samples of one moment, as under a fixed clock */
        *value = metrics[metric].kind == COUNTER ? 0 : value_at(gpu, metric, to);
    else if (metrics[metric].kind == COUNTER)
        *value = (value_at(gpu, metric, to) - value_at(gpu, metric, from)) / seconds;
    else
        *value = reading->low + (reading->high - reading->low) / seconds *
                                    (load_integral(load_of(gpu, to), to) - load_integral(load_of(gpu, from), from));
    return SUCCESS;
}

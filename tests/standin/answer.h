/* What every exported function is made of: enter, check the arguments, answer. */
#ifndef STANDIN_ANSWER_H
#define STANDIN_ANSWER_H
#include "model.h"

#define CHECK(call)                   \
    do {                              \
        nvmlReturn_t result = (call); \
        if (result)                   \
            return result;            \
    } while (0)
#define ENTER(name)   \
    struct target at; \
    CHECK(enter_device(F_##name, device, &at))
#define NEED(condition)              \
    do {                             \
        if (!(condition))            \
            return INVALID_ARGUMENT; \
    } while (0)

static inline nvmlReturn_t measure_now(const struct gpu *gpu, enum metric metric, uint64_t *value)
{
    return measure(gpu, metric, now_us(), value);
}

static inline nvmlReturn_t measure_uint(const struct gpu *gpu, enum metric metric, uint *value)
{
    uint64_t wide;
    NEED(value);
    CHECK(measure_now(gpu, metric, &wide));
    *value = (uint)wide;
    return SUCCESS;
}
#endif

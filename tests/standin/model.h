/* The state behind the library: the control file, this process's view of it, and values over time. */
#ifndef STANDIN_MODEL_H
#define STANDIN_MODEL_H
#include "control.h"
#include "nvml_types.h"

struct target {
    struct gpu *gpu;
    struct instance *instance; /* NULL: the card itself */
    uint slot;
};

extern struct control *control; /* NULL until attached */

/* Maps the file named by GPU_MONITOR_STANDIN; says on stderr why it cannot. */
nvmlReturn_t attach(void);
/* A new reference to the library: takes the driver's epoch and the list of cards. */
nvmlReturn_t begin(enum function function);
nvmlReturn_t finish(void);

/* Every call goes through one of these: counts it, then does what the control file asks for. */
nvmlReturn_t enter(enum function function);
nvmlReturn_t enter_slot(enum function function, uint slot);
nvmlReturn_t enter_device(enum function function, nvmlDevice_t device, struct target *target);

/* The slots of the cards this process sees, in index order; returns how many. */
uint visible(uint order[SLOTS]);
nvmlDevice_t handle_of(uint slot, uint instance); /* instance 0: the card; 1..: its MIG instances */

uint64_t now_us(void);
nvmlReturn_t measure(const struct gpu *gpu, enum metric metric, uint64_t at_us, uint64_t *value);
nvmlReturn_t measure_mean(const struct gpu *gpu, enum metric metric, uint64_t from_us, uint64_t to_us, double *value);

/* Sleeps until *word is no longer `value`, or a quarter of a second is over, or `longest_ms`. */
void nap(const uint32_t *word, uint32_t value, uint64_t longest_ms);
uint64_t monotonic_ms(void);
#endif

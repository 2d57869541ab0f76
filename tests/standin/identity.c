/* The library itself, handles, identity and MIG. */
#include <stdio.h>
#include <string.h>

#include "answer.h"

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

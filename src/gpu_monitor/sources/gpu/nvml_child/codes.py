"""What both sides of the pipe must agree on: calls by number, NVML's error codes and words for them."""

from __future__ import annotations

# Every function of the library that the child calls; its number on the progress board is the index.
CALLS: tuple[str, ...] = (
    "",
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetAddressingMode",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetFanSpeed",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetPerformanceState",
    "nvmlDeviceGetViolationStatus",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlEventSetCreate",
    "nvmlEventSetFree",
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetWait_v2",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
    "nvmlGpmSampleGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmMetricsGet",
)
NUMBER: dict[str, int] = {name: number for number, name in enumerate(CALLS)}

# The progress board, one byte each: what the child is at. The supervisor reads it when a round is late.
BOARD_BYTES = 128
AT_CARD, AT_CALL, AT_PHASE, AT_COUNT = 0, 1, 2, 3
"""Places on the board: 1 + number of the card (0: none), number of the call, phase, how many cards."""
TAG = slice(32, 128)
TAG_BYTES = 96  # NVML's buffer for a UUID
"""Place of the UUID of the card, padded with zeros, in phase IN_TABLE."""
NO_CARD = 0
BY_INDEX, BY_ADDRESS, IN_TABLE = 0, 1, 2
"""Phases: the number of the card counts NVML indices, or the addresses asked for, or its UUID is given."""

# NVML's return codes (nvmlReturn_t), as its reference names them.
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
GPU_NOT_FOUND = 28

LOST = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})
"""Answers that speak of the whole device, not of the one value."""
DRIVER_GONE = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})
"""Answers that speak of the driver as a whole: only a fresh process gets on."""
# 22 ECC on a vGPU, 25 structure version unknown to an older driver, 26 deprecated.
UNSUPPORTED = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, 22, 25, 26})

WORDS: dict[int, str] = {
    UNINITIALIZED: "driver was unloaded or reloaded",
    INVALID_ARGUMENT: "invalid argument",
    NOT_SUPPORTED: "not supported",
    NO_PERMISSION: "insufficient permissions",
    NOT_FOUND: "not found",
    8: "external power cable missing",
    DRIVER_NOT_LOADED: "driver not loaded",
    TIMEOUT: "timeout",
    11: "interrupt problem",
    LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 not found",
    FUNCTION_NOT_FOUND: "function missing in this driver",
    14: "corrupted infoROM",
    GPU_IS_LOST: "GPU is lost (fell off the bus)",
    RESET_REQUIRED: "GPU requires reset",
    17: "blocked by the operating system",
    LIB_RM_VERSION_MISMATCH: "driver/library version mismatch",
    GPU_NOT_FOUND: "GPU not found",
    999: "unknown driver error",
}


def words(code: int) -> str:
    """What an NVML error code means, for people."""
    return WORDS.get(code, f"driver error {code}")

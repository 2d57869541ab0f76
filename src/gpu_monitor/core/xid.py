# SPDX-License-Identifier: MIT
"""What NVIDIA's Xid numbers mean and what to do about each.

Meanings and actions follow NVIDIA's Xid catalogue
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html) and, for the numbers that only
Volta and older GPUs raise, the archived list beside it; the wording is ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from gpu_monitor.core.model import Event

EVENT_KIND = "xid"
"""The `kind` of every event that is about an Xid."""


class Action(Enum):
    """What NVIDIA advises to do first."""

    IGNORE = "ignore"
    MONITOR = "monitor"
    FOLLOW_OTHER = "follow_other_xid"
    RESTART_APPLICATION = "restart_application"
    CHECK_APPLICATION = "check_application"
    UPDATE_SOFTWARE = "update_software"
    CHECK_HARDWARE = "check_hardware"
    DRAIN = "drain"
    RESET_GPU = "reset_gpu"
    RESTART_VM = "restart_vm"
    REBOOT_NODE = "reboot_node"
    CONTACT_VENDOR = "contact_vendor"


@dataclass(frozen=True)
class Xid:
    """One Xid: what it means, the class of action advised, the advice in words, and how bad it is.

    `severity` is info, warning, error or critical.
    """

    number: int
    meaning: str
    action: Action
    advice: str
    severity: str


_ADVICE: dict[Action, tuple[str, str]] = {
    Action.IGNORE: ("info", "Nothing to do."),
    Action.MONITOR: ("info", "Nothing to do now; watch whether it comes back."),
    Action.FOLLOW_OTHER: ("info", "A consequence: act on the Xid reported before it on this GPU."),
    Action.RESTART_APPLICATION: ("warning", "Restart the application; if it repeats, report it to NVIDIA."),
    Action.CHECK_APPLICATION: (
        "warning",
        "Restart the application and look for its bug (compute-sanitizer, cuda-gdb).",
    ),
    Action.UPDATE_SOFTWARE: ("warning", "Check and update the driver, the firmware and the vGPU software."),
    Action.CHECK_HARDWARE: ("error", "Check power cables, seating and cooling of the board."),
    Action.DRAIN: ("error", "Let the work on this GPU end and give it no more, then reset it."),
    Action.RESET_GPU: (
        "error",
        "Drain the GPU and reset it (nvidia-smi --gpu-reset) or reboot; if it repeats, contact the vendor.",
    ),
    Action.RESTART_VM: ("error", "Restart the virtual machine."),
    Action.REBOOT_NODE: (
        "critical",
        "Take the node out of service and reboot it; if it repeats, have the hardware checked.",
    ),
    Action.CONTACT_VENDOR: ("error", "Keep the kernel log and nvidia-bug-report.sh, and contact the vendor."),
}


def _xid(
    number: int, meaning: str, action: Action, severity: str | None = None, advice: str | None = None
) -> Xid:
    usual_severity, usual_advice = _ADVICE[action]
    return Xid(number, meaning, action, advice or usual_advice, severity or usual_severity)


_MEMORY_ADVICE = (
    "With Xid 63 or 64: drain the GPU and reset it; alone: reset it. "
    "Replace the board when nvidia-smi -q says that the SRAM threshold is exceeded or remapping failed."
)
_NVLINK5_ADVICE = (
    "Look at the fatal / nonfatal word of the message: nonfatal, watch it; fatal, drain the GPU and "
    "reset it; the same link again, contact the vendor."
)
_GSP_ADVICE = (
    "Drain the GPU and reset it, or power-cycle the node; if it repeats, update driver and firmware "
    "and follow NVIDIA's GPU debug guidelines."
)
_OLD_DRIVER = "old driver or GPU generation; update the driver, and contact the vendor if it repeats."

A = Action
_TABLE: tuple[Xid, ...] = (
    # Numbers of Volta and older: today's drivers no longer raise most of them.
    *(_xid(n, "corrupted command stream (push buffer)", A.CHECK_APPLICATION) for n in (1, 2, 3, 4, 6)),
    _xid(7, "corrupted address in the command stream (push buffer)", A.CHECK_APPLICATION),
    _xid(8, "the GPU stopped processing", A.RESTART_APPLICATION),
    _xid(9, "the driver programmed the GPU wrongly", A.CONTACT_VENDOR, advice=f"An {_OLD_DRIVER}"),
    _xid(11, "corrupted command stream (push buffer)", A.CHECK_APPLICATION),
    _xid(12, "the driver failed to handle a GPU exception", A.CONTACT_VENDOR, advice=f"An {_OLD_DRIVER}"),
    _xid(13, "graphics or compute engine exception, mostly an access out of bounds", A.CHECK_APPLICATION),
    _xid(14, "a test error injected from user space", A.IGNORE),
    _xid(16, "the display engine hung", A.CONTACT_VENDOR),
    _xid(18, "bus mastering is disabled in the PCI configuration", A.CONTACT_VENDOR),
    _xid(19, "display engine error", A.CONTACT_VENDOR),
    _xid(20, "corrupted command stream of the MPEG engine", A.CHECK_APPLICATION),
    _xid(21, "corrupted command stream of the motion estimation engine", A.CHECK_APPLICATION),
    _xid(22, "corrupted command stream of the video processor", A.CHECK_APPLICATION),
    _xid(24, "a GPU semaphore timed out", A.CONTACT_VENDOR),
    _xid(25, "illegal command stream (push buffer)", A.CHECK_APPLICATION),
    _xid(26, "device memory timed out", A.CONTACT_VENDOR),
    *(_xid(n, "video processor exception", A.RESTART_APPLICATION) for n in (27, 28, 29)),
    _xid(30, "bad access to a GPU semaphore", A.CONTACT_VENDOR),
    _xid(31, "GPU memory page fault: illegal address, mostly a bug of the application", A.CHECK_APPLICATION),
    _xid(
        32,
        "corrupted command stream seen by the DMA controller",
        A.RESTART_APPLICATION,
        advice="Restart the application; if it repeats, check the PCIe link (signal quality, seating).",
    ),
    _xid(33, "internal microcontroller error", A.CONTACT_VENDOR),
    *(_xid(n, "video processor exception", A.RESTART_APPLICATION) for n in (34, 35, 36)),
    _xid(37, "driver firmware error", A.MONITOR),
    _xid(38, "driver firmware error (watchdog)", A.MONITOR, "warning"),
    *(_xid(n, f"copy engine {n - 39} exception", A.RESTART_APPLICATION) for n in (39, 40, 41)),
    _xid(42, "video processor exception", A.RESTART_APPLICATION),
    _xid(43, "the application hit a fault and was stopped; the GPU is healthy", A.CHECK_APPLICATION),
    _xid(44, "graphics engine fault during a context switch", A.MONITOR, "warning"),
    _xid(
        45,
        "the driver removed the work of a process that ended, was killed, or met another error",
        A.FOLLOW_OTHER,
        advice="Alone it is a process that was stopped; with others, act on the Xid before it.",
    ),
    _xid(46, "the GPU stopped processing (timeout)", A.RESET_GPU),
    _xid(47, "video encoder exception", A.RESTART_APPLICATION),
    _xid(48, "uncorrectable (double bit) memory error", A.RESET_GPU, "critical", _MEMORY_ADVICE),
    _xid(54, "auxiliary power is not connected to the board", A.CHECK_HARDWARE),
    _xid(56, "display engine error", A.CONTACT_VENDOR),
    _xid(57, "error programming the video memory interface", A.CONTACT_VENDOR),
    _xid(58, "the video memory interface is unstable", A.CONTACT_VENDOR),
    _xid(59, "internal microcontroller error (older drivers)", A.CONTACT_VENDOR),
    _xid(60, "video processor (SEC2) exception", A.RESTART_APPLICATION),
    _xid(61, "internal microcontroller breakpoint", A.CONTACT_VENDOR),
    _xid(62, "internal microcontroller halt", A.RESET_GPU),
    _xid(
        63,
        "a faulty memory row or page was recorded for remapping or retirement",
        A.MONITOR,
        "warning",
        "Takes effect at the next reset of the GPU: plan one; after an Xid 48, do it now.",
    ),
    _xid(
        64,
        "a faulty memory row or page could not be remapped or retired",
        A.RESET_GPU,
        "critical",
        "Drain the GPU and reset it; contact the vendor for a replacement.",
    ),
    _xid(65, "video encoder exception", A.RESTART_APPLICATION),
    *(_xid(n, "illegal register access by the driver", A.MONITOR, "warning") for n in (66, 67)),
    _xid(68, "video decoder 0 exception", A.RESTART_APPLICATION),
    _xid(69, "graphics engine class error", A.CHECK_APPLICATION),
    *(_xid(n, f"copy engine {n - 67} error", A.RESTART_APPLICATION) for n in (70, 71, 72)),
    _xid(73, "video encoder 2 exception", A.RESTART_APPLICATION),
    _xid(
        74,
        "NVLink error",
        A.RESET_GPU,
        advice="See nvidia-smi nvlink -e and whether the GPU at the other end failed; reset the GPUs of "
        "the link or reboot; if it repeats, contact the vendor.",
    ),
    *(_xid(n, f"copy engine {n - 69} error", A.RESTART_APPLICATION) for n in (75, 76, 77)),
    _xid(78, "a vGPU could not start", A.UPDATE_SOFTWARE),
    _xid(
        79,
        "the GPU has fallen off the bus: it no longer answers over PCIe",
        A.REBOOT_NODE,
        advice="Take the node out of service, read the PCIe (AER) messages around it, and reboot or power-cycle; "
        "if it repeats, have link, power and board checked.",
    ),
    _xid(80, "corrupted data reached the GPU", A.CHECK_APPLICATION),
    _xid(81, "VGA subsystem error", A.CONTACT_VENDOR),
    _xid(82, "JPEG engine 0 error", A.RESTART_APPLICATION),
    *(_xid(n, f"video decoder {n - 82} error", A.RESTART_APPLICATION) for n in (83, 84)),
    _xid(85, "copy engine 9 error", A.RESTART_APPLICATION),
    _xid(86, "optical flow engine exception", A.RESTART_APPLICATION),
    *(_xid(n, f"video decoder {n - 85} error", A.RESTART_APPLICATION) for n in (88, 89)),
    _xid(92, "many single bit memory errors (corrected)", A.MONITOR, "warning"),
    _xid(93, "the wear limit set for the InfoROM was reached", A.MONITOR, "warning"),
    _xid(
        94,
        "contained memory error: one application lost its data, the others go on",
        A.RESTART_APPLICATION,
        "error",
        "Restart the application; reset the GPU when convenient.",
    ),
    _xid(
        95,
        "uncontained memory error: every application on the GPU is affected",
        A.RESET_GPU,
        "critical",
        "Drain the GPU and reset it before anything runs on it again.",
    ),
    *(_xid(n, f"video decoder {n - 91} error", A.RESTART_APPLICATION) for n in (96, 97, 98)),
    *(_xid(n, f"JPEG engine {n - 98} error", A.RESTART_APPLICATION) for n in range(99, 106)),
    *(_xid(n, "test message of the management bus (SMBPBI)", A.IGNORE) for n in (106, 107)),
    _xid(108, "address translation failed at the far end of an NVLink", A.MONITOR),
    _xid(109, "a context switch timed out", A.RESET_GPU),
    _xid(
        110,
        "security fault",
        A.RESET_GPU,
        "critical",
        "Undo recent hardware changes and power the machine off and on; if it stays, contact the vendor.",
    ),
    _xid(111, "display: bundle error", A.CONTACT_VENDOR),
    _xid(112, "display: supervisor error", A.CONTACT_VENDOR),
    _xid(113, "display: DisplayPort link training failed", A.CONTACT_VENDOR),
    _xid(114, "display: pipeline underflow", A.CONTACT_VENDOR),
    _xid(115, "display: core channel error", A.CONTACT_VENDOR),
    _xid(116, "display: window channel error", A.CONTACT_VENDOR),
    _xid(117, "display: cursor channel error", A.CONTACT_VENDOR),
    _xid(118, "display: pixel pipeline error", A.CONTACT_VENDOR),
    _xid(119, "the GPU system processor (GSP) did not answer in time", A.RESET_GPU, advice=_GSP_ADVICE),
    _xid(120, "error in the GPU system processor (GSP)", A.RESET_GPU, advice=_GSP_ADVICE),
    _xid(
        121,
        "corrected errors on the link between CPU and GPU (C2C)",
        A.MONITOR,
        advice="No effect on work; reset the GPU in the next maintenance window so that the link trains anew.",
    ),
    _xid(122, "reading the board's flash failed", A.CONTACT_VENDOR),
    _xid(123, "writing the board's flash failed", A.CONTACT_VENDOR),
    _xid(124, "erasing the board's flash failed", A.CONTACT_VENDOR),
    _xid(125, "the InfoROM file system failed", A.CONTACT_VENDOR),
    *(_xid(n, f"copy engine {n - 116} error", A.RESTART_APPLICATION) for n in range(126, 136)),
    _xid(136, "NVLink training failed", A.RESET_GPU),
    _xid(137, "illegal access over NVLink, mostly a bug of the application", A.CHECK_APPLICATION),
    _xid(138, "deep learning accelerator error", A.CONTACT_VENDOR),
    _xid(139, "optical flow engine 1 error", A.RESTART_APPLICATION),
    _xid(140, "uncorrectable memory error that the driver could not contain", A.RESET_GPU, "critical"),
    _xid(141, "CUDA fast path error", A.MONITOR, "warning"),
    _xid(142, "video encoder 3 error", A.CONTACT_VENDOR),
    _xid(143, "the GPU failed to initialise", A.RESET_GPU),
    *(
        _xid(n, f"NVLink error ({part})", A.RESET_GPU, advice=_NVLINK5_ADVICE)
        for n, part in enumerate(("SAW", "RLW", "TLW", "TREX", "NVLPW_CTRL", "NETIR", "MSE"), 144)
    ),
    _xid(151, "key rotation error (confidential computing)", A.RESTART_VM),
    _xid(152, "deep learning accelerator: SMMU error", A.MONITOR, "warning"),
    _xid(153, "deep learning accelerator: timeout", A.MONITOR, "warning"),
    _xid(
        154,
        "the recovery that the GPU asks for has changed",
        A.FOLLOW_OTHER,
        "warning",
        "Do what its text names; the Xid before it is the cause.",
    ),
    _xid(155, "an NVLink was taken down by software or failed in a defined way", A.RESET_GPU, "warning"),
    _xid(156, "a faulty part of the GPU was retired", A.RESET_GPU, "warning"),
    _xid(
        157,
        "a faulty part of the GPU could not be retired: no spare is left",
        A.CONTACT_VENDOR,
        advice="Work may go on but the error can return; contact the vendor for a replacement.",
    ),
    _xid(158, "fatal timeout inside the GPU", A.RESET_GPU, "critical"),
    _xid(159, "error on the link between CPU and GPU (CHI)", A.RESET_GPU),
    _xid(160, "a memory channel was retired", A.MONITOR, "warning"),
    _xid(161, "a memory channel could not be retired", A.MONITOR, "warning"),
    _xid(162, "hardware power smoothing is on again", A.IGNORE),
    _xid(
        163,
        "hardware power smoothing was switched off",
        A.MONITOR,
        "warning",
        "Look for high temperatures; reload the driver or reset the GPU to have it back.",
    ),
    _xid(164, "hardware power smoothing is near its end of life", A.MONITOR, "warning"),
    _xid(165, "hardware power smoothing has reached its end of life", A.CONTACT_VENDOR, "warning"),
    _xid(166, "unencrypted NVLink traffic in confidential computing", A.CONTACT_VENDOR),
    _xid(167, "fatal PCIe timeout", A.REBOOT_NODE),
    _xid(
        168,
        "part of the device memory is unusable",
        A.CONTACT_VENDOR,
        advice="Enable ECC, so that faulty rows can be remapped, and reboot.",
    ),
    _xid(169, "internal microcontroller (SEC2) halt", A.RESET_GPU),
    _xid(170, "NVLink interrupt in confidential computing", A.CONTACT_VENDOR),
    _xid(
        171,
        "uncorrectable error in DRAM (says more about an Xid 48)",
        A.RESET_GPU,
        "critical",
        _MEMORY_ADVICE,
    ),
    _xid(
        172,
        "uncorrectable error in SRAM (says more about an Xid 48)",
        A.RESET_GPU,
        "critical",
        _MEMORY_ADVICE,
    ),
)
del A

XIDS: dict[int, Xid] = {xid.number: xid for xid in _TABLE}
"""Every documented number that has, or had, a meaning."""

# The texts NVIDIA documents for Xid 154.
_RECOVERY = re.compile(r"\bto\s+(?:0x[0-9a-f]+\s*)?\(([^)]+)\)", re.IGNORECASE)
_RECOVERY_ACTIONS: dict[str, tuple[Action, str]] = {
    "none": (Action.IGNORE, "info"),
    "drain p2p": (Action.DRAIN, "error"),
    "drain and reset": (Action.DRAIN, "error"),
    "gpu reset required": (Action.RESET_GPU, "error"),
    "node reboot required": (Action.REBOOT_NODE, "critical"),
}


def explain(number: int, text: str = "") -> Xid:
    """What Xid `number` means; `text` is the message it came with, where there is one.

    An Xid 154 takes its action from the text. A number NVIDIA does not document is said to be so.
    """
    known = XIDS.get(number)
    if known is None:
        return _undocumented(number)
    if number == 154 and (match := _RECOVERY.search(text)):
        asked = match[1].strip()
        action, severity = _RECOVERY_ACTIONS.get(asked.lower(), (known.action, known.severity))
        advice = known.advice if action is known.action else _ADVICE[action][1]
        return replace(known, action=action, severity=severity, advice=f"{asked}: {advice}")
    return known


def _undocumented(number: int) -> Xid:
    return _xid(
        number,
        "NVIDIA's catalogue gives this number no meaning",
        Action.CONTACT_VENDOR,
        "warning",
        "Keep the kernel log and look it up in NVIDIA's current Xid catalogue.",
    )


def xid_event(
    time: float,
    number: int,
    *,
    uid: str | None = None,
    pci_bus_id: str | None = None,
    pid: int | None = None,
    process: str | None = None,
    text: str = "",
    via: str = "nvml",
) -> Event:
    """The event that says: Xid `number` at `time` (UTC epoch), what it means and what to do.

    `via` is where it was read: nvml, kernel_log or simulated. What is None is left out of the detail.
    """
    xid = explain(number, text)
    said: dict[str, str | int | float | None] = {
        "xid": number,
        "meaning": xid.meaning,
        "action": xid.action.value,
        "advice": xid.advice,
        "pci_bus_id": pci_bus_id,
        "pid": pid,
        "process": process,
        "text": text or None,
        "via": via,
    }
    detail = {name: value for name, value in said.items() if value is not None}
    message = f"Xid {number}: {xid.meaning}. {xid.advice}"
    return Event(time, EVENT_KIND, message, xid.severity, uid, detail)

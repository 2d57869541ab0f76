"""The rules that every server has from the start, each with what to do; they may be changed or switched off."""

from __future__ import annotations

from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.rules.coverage import Coverage
from gpu_monitor.server.alerts.rules.disk import Disk
from gpu_monitor.server.alerts.rules.held import Held
from gpu_monitor.server.alerts.rules.late import Late
from gpu_monitor.server.alerts.rules.lost import Lost
from gpu_monitor.server.alerts.rules.run_alert import RunAlert
from gpu_monitor.server.alerts.rules.run_ended import RunEnded
from gpu_monitor.server.alerts.rules.run_nan import RunNan
from gpu_monitor.server.alerts.rules.run_stalled import RunStalled
from gpu_monitor.server.alerts.rules.silent import Silent
from gpu_monitor.server.alerts.rules.skew import Skew
from gpu_monitor.server.alerts.rules.threshold import Threshold
from gpu_monitor.server.alerts.rules.throttled import Throttled
from gpu_monitor.server.alerts.rules.xid import XidErrors

BUILTIN: tuple[Rule, ...] = (
    Rule(
        "gpu-lost",
        Lost(),
        "critical",
        "Take the node out of service, look for an Xid just before (gpu_monitor doctor, dmesg), reset the GPU or"
        " reboot; if it comes back, have link, power and board checked.",
    ),
    Rule(
        "xid-hardware",
        XidErrors(least="error"),
        "error",
        "Do what the message says: NVIDIA's advice for this Xid. Drain the GPU before a reset.",
    ),
    Rule(
        # Below the 97 °C at which a card slows down by itself (nvidia-smi -q of an RTX 2080 SUPER).
        "gpu-hot",
        Threshold(metric="temperature", limit=90, for_seconds=300),
        "warning",
        "Look at fans, filters, the air in front of the rack and what runs beside it; lower the power limit meanwhile.",
    ),
    Rule(
        "gpu-throttled",
        Throttled(),
        "warning",
        "It runs slower than it could: heat or power. Look at temperature, fans and power supplies of the machine.",
    ),
    Rule(
        "gpu-held-idle",
        Held(),
        "info",
        "Somebody holds memory and computes nothing: ask the process's owner (they stand at the GPU) to end it.",
    ),
    Rule(
        "node-silent",
        Silent(),
        "error",
        "Look whether the machine is up, then at its agent: gpu_monitor service status, gpu_monitor doctor. What it"
        " recorded comes later.",
    ),
    Rule(
        "report-late",
        Late(),
        "warning",
        "The node is there but its reports are not: gpu_monitor -ls on it names the error.",
    ),
    Rule(
        "coverage-low",
        Coverage(),
        "warning",
        "The agent misses samples: gpu_monitor doctor on the node says why; the gaps of the node name the cause.",
    ),
    Rule(
        "clock-skew",
        Skew(),
        "warning",
        "Let the machine's clock be kept: timedatectl set-ntp true, or chrony. Its hours stand at wrong times.",
    ),
    Rule(
        "node-disk",
        Disk(),
        "warning",
        "Make room on the disk of the agent's store before it is full: then minutes would be lost.",
    ),
    Rule(
        # Off: on a busy fleet it would be most of what is told. For one project: a rule of your own with `only`.
        "run-completed",
        RunEnded(statuses=("completed",)),
        "info",
        "Nothing: it is done. Look at its last values, and compare it with the one before.",
        enabled=False,
    ),
    Rule(
        "run-failed",
        RunEnded(statuses=("failed",)),
        "warning",
        "Look at the end of its output (/api/logs): an exception or an exit code says why. Mend it, then go on with"
        " resume=ID from its last checkpoint.",
    ),
    Rule(
        "run-crashed",
        RunEnded(statuses=("crashed",)),
        "error",
        "Its process is gone without a word: look at the cause (a signal, out of memory, an Xid), at the kernel log of"
        " the machine and at its batch system. Every logged step is kept: go on with resume=ID.",
    ),
    Rule(
        "run-stalled",
        RunStalled(),
        "warning",
        "Look whether its process lives and its machine reaches the server; a hung collective or data loader shows in"
        " py-spy dump.",
    ),
    Rule(
        "run-nan",
        RunNan(),
        "warning",
        "Stop it before it costs more: go back to the last checkpoint before that step, with a lower learning rate,"
        " gradient clipping or another loss scale.",
    ),
    Rule(
        "run-alert",
        RunAlert(),
        "error",
        "What it says is its author's own: look at its output and metrics. Lower levels are told by a rule with `levels`.",
    ),
    Rule(
        "server-disk",
        Disk(of="server"),
        "critical",
        "Make room on the server's disk, or move its database: a full disk takes no reports.",
    ),
)

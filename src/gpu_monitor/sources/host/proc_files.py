"""What the files of /proc/<pid> say about a process: pure parsers of their contents."""

from __future__ import annotations

import re
from dataclasses import dataclass

EXPERIMENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
EXPERIMENT_VARIABLE = b"GPU_MONITOR_EXPERIMENT_ID="

# The kernel keeps 15 characters of a program's name (TASK_COMM_LEN is 16 with the end mark).
_COMM_LENGTH = 15
_CONTROL = dict.fromkeys((*range(32), 127), " ")

_CONTAINER = re.compile(
    r"(?:(?P<runtime>docker|cri-containerd|crio|libpod(?:-payload)?|containerd|nerdctl|buildkit)[-/:])?"
    r"(?P<id>[0-9a-f]{64})(?:\.scope)?(?:/|$)"
)
_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "crio",
    "libpod": "podman",
    "libpod-payload": "podman",
    "buildkit": "buildkit",
}
_POD = re.compile(r"\bpod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_LXC = re.compile(r"/lxc(?:\.payload)?[./](?!monitor)([^/]+)")
# Cgroup v1: /slurm/uid_1000/job_123/step_0; v2: /system.slice/slurmstepd.scope/job_123/step_0/user/task_0,
# also with the node's name before slurmstepd or after slurm.
_SLURM_JOB = re.compile(r"/[^/]*slurm[^/]*/(?:[^/]+/)*?job_(\d+)(?:/|$)")


@dataclass(frozen=True)
class Stat:
    """From /proc/<pid>/stat: the program's short name, and its start in clock ticks since boot."""

    comm: str
    start_ticks: int


def parse_stat(content: bytes) -> Stat | None:
    """The name and start of a process; None where `content` is no stat file.

    The name may hold spaces and parentheses, so fields are counted from the last `)`.
    """
    begin, end = content.find(b"("), content.rfind(b")")
    fields = content[end + 1 :].split()
    # starttime is field 22 (proc(5)); the first one after the name is field 3.
    if begin < 0 or end < begin or len(fields) < 20 or not fields[19].isdigit():
        return None
    return Stat(content[begin + 1 : end].decode("utf-8", "replace"), int(fields[19]))


@dataclass(frozen=True)
class Ids:
    """From /proc/<pid>/status: the real user id, and the pid in the innermost namespace (None before 4.1)."""

    uid: int | None
    ns_pid: int | None


def parse_status(content: str) -> Ids:
    """The ids of a process; None for what is not there."""
    uid: int | None = None
    ns_pid: int | None = None
    for line in content.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "Uid:" and words[1].isdigit():
            uid = int(words[1])
        elif words[0] == "NSpid:" and words[-1].isdigit():
            ns_pid = int(words[-1])
    return Ids(uid, ns_pid)


def program_name(comm: str, first_argument: str) -> str | None:
    """The name of the program, never an argument.

    The kernel cuts names at 15 characters, and threads rename themselves (PyTorch: `pt_main_thread`);
    the file name in `first_argument` mends both where it plainly is one. A title written over the
    arguments (setproctitle) is not used: it may hold anything.
    """
    file_name = first_argument.rsplit("/", 1)[-1].lstrip("-")
    is_plain = file_name != "" and not any(character.isspace() for character in first_argument)
    if is_plain and len(comm) == _COMM_LENGTH and file_name.startswith(comm):
        return clean(file_name)
    if is_plain and comm.startswith("pt_") and file_name.startswith("python"):
        return clean(file_name)
    return clean(comm) or None


def clean(text: str, longest: int = 4096) -> str:
    """`text` on one line without control characters, cut to `longest` characters."""
    return text.translate(_CONTROL).strip()[:longest]


def container_of(cgroup: str) -> str | None:
    """The container of a process by its /proc/<pid>/cgroup, None outside of one.

    `docker:0123456789ab`, `containerd:…`, `crio:…`, `podman:…`, `lxc:name`; in Kubernetes followed by
    `/pod:<uid>`. Of containers in containers it is the innermost; the id is cut to the 12 characters
    that the runtimes' own tools show.
    """
    found: str | None = None
    for path in _paths(cgroup):
        pod = _last(_POD, path)
        within = f"/pod:{pod.replace('_', '-')}" if pod else ""
        ids = list(_CONTAINER.finditer(path))
        if ids:
            innermost = ids[-1]
            runtime = _RUNTIMES.get(innermost["runtime"] or "", "container")
            best = f"{runtime}:{innermost['id'][:12]}{within}"
            # A hierarchy of cgroup v1 may name the runtime where another one does not.
            if found is None or (found.startswith("container:") and runtime != "container"):
                found = best
        elif found is None and pod:
            found = within[1:]
        elif found is None and (name := _last(_LXC, path)):
            found = f"lxc:{clean(name, 64)}"
    return found


def slurm_job_of(cgroup: str) -> str | None:
    """The number of the Slurm job that a process belongs to by its /proc/<pid>/cgroup; None without one."""
    for path in _paths(cgroup):
        if match := _SLURM_JOB.search(path):
            return match[1]
    return None


def experiment_of(environment: bytes) -> str | None:
    """The experiment id in the contents of /proc/<pid>/environ; None without a valid one."""
    for entry in environment.split(b"\0"):
        if entry.startswith(EXPERIMENT_VARIABLE):
            value = entry[len(EXPERIMENT_VARIABLE) :].decode("utf-8", "replace")
            return value if EXPERIMENT_ID.fullmatch(value) else None
    return None


def _paths(cgroup: str) -> list[str]:
    """The paths of `hierarchy:controllers:path` lines."""
    return [parts[2] for line in cgroup.splitlines() if len(parts := line.split(":", 2)) == 3]


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None

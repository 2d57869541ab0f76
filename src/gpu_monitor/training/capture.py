# SPDX-License-Identifier: MIT
"""Facts of a run: its command, Python, machine, Slurm job, CUDA, commit and packages. What takes time is found by a child."""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from pathlib import Path
from typing import Any

from gpu_monitor.config.load import environment
from gpu_monitor.core.clock import process_seconds
from gpu_monitor.sources.child import Child, Ended, SystemLauncher, module_paths
from gpu_monitor.training.arrays import loaded
from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.training.identity import find_local_rank, user_name
from gpu_monitor.training.masking import mask_arguments, mask_text
from gpu_monitor.training.parts import Options
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.topics import DIFF, FACTS
from gpu_monitor.wire.training import Capture, Media

_CHILD = "gpu_monitor.training.capture_child"
_SLOW = ("packages", "git")
SHARED = frozenset(_SLOW)
"""What all processes of one training have in common, and is costly to find."""
_SECONDS = 40.0
"""What is not known by then stays unknown."""
_LAST_SECONDS = 5.0
"""What the end of a run waits for it."""
_LOOK_SECONDS = 0.25
"""How often the thread looks whether the run is over."""
_DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s")
_CUDA = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "CUDA_VERSION", "CUDA_HOME")
_SLURM = (
    "JOB_ID", "JOB_NAME", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_PARTITION", "JOB_ACCOUNT", "JOB_QOS", "JOB_NODELIST",
    "JOB_GPUS", "NNODES", "NTASKS", "CPUS_PER_TASK", "NODEID", "PROCID", "LOCALID", "STEP_ID", "CLUSTER_NAME",
    "SUBMIT_HOST", "SUBMIT_DIR", "RESTART_COUNT",
)  # fmt: skip


class Capturing:
    """Records facts of the run from a thread of its own (parts.Part). `topics`: which (topics.FACTS)."""

    def __init__(self, recorder: Recorder, topics: frozenset[str]) -> None:
        self._recorder = recorder
        self._topics = topics
        self._program = find_program()
        self._child: Child | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gpu_monitor-capture", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self, timeout: float) -> str | None:
        """Wait for what is under way, a few seconds; what is not known then is left out, with a reason."""
        self._thread.join(min(timeout, _LAST_SECONDS))
        self._is_over.set()
        self._thread.join(1.0)
        return None

    def _work(self) -> None:
        facts = quick_facts(self._topics, self._program)
        if facts:
            self._recorder.put(Capture(self._recorder.at(), facts))
        slow = [topic for topic in _SLOW if topic in self._topics]
        if slow:
            self._ask(slow)

    def _ask(self, topics: list[str]) -> None:
        """Record what a child answers; a topic that it does not answer has a reason."""
        asked = {
            "topics": topics,
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "folders": [str(folder) for folder in code_folders(self._program)],
            "experiment": str(self._recorder.folder.absolute()),
        }
        try:
            child = Child(_CHILD, module_paths(), SystemLauncher(), 1)
        except OSError as error:
            self._leave_out(topics, f"no process can be started: {error.strerror}")
            return
        left = list(topics)
        try:
            child.send(asked)
            reason = self._listen(child, left)
        except Ended:
            reason = "the process that looks for it ended"
        finally:
            child.kill()
            child.has_ended(1.0)
            child.close()
        self._leave_out(left, reason)

    def _listen(self, child: Child, left: list[str]) -> str:
        """Record the answers as they come, until none is `left`; else why there are no more."""
        deadline = process_seconds() + _SECONDS
        while left:
            answer = child.receive(_LOOK_SECONDS)
            if answer is not None:
                topic, found = answer
                if topic in left:
                    left.remove(topic)
                self._put(topic, found)
            elif self._is_over.is_set():
                return "the run ended before it was known"
            elif process_seconds() > deadline:
                return f"not known within {_SECONDS:.0f} s"
        return ""

    def _put(self, topic: str, found: dict[str, Any]) -> None:
        if self._recorder.is_over:  # so busy a machine that the end did not wait long enough
            return
        at = self._recorder.at()
        record = Media(at, None, "text", DIFF, found) if topic == DIFF else Capture(at, {topic: found})
        self._recorder.put(record)

    def _leave_out(self, topics: list[str], reason: str) -> None:
        for topic in topics:
            self._put(topic, {"reason": reason})


def start(recorder: Recorder, options: Options) -> Capturing | None:
    """Record what is wanted of the facts (parts.STARTS); None where nothing is."""
    topics = options.wanted & set(FACTS)
    if (find_local_rank() or 0) > 0:
        topics -= SHARED  # the first process of the machine says it for all
    if not topics:
        return None
    capturing = Capturing(recorder, topics)
    capturing.start()
    return capturing


def code_folders(program: Path | None) -> list[Path]:
    """Where the code of the run may lie: beside its script, else where it was started."""
    folders = [program.absolute().parent] if program is not None else []
    try:
        folders.append(Path.cwd())
    except FileNotFoundError:  # it was deleted
        pass
    return folders


def find_program() -> Path | None:
    """The script that runs; None in a notebook or an interactive session."""
    file = getattr(loaded("__main__"), "__file__", None)
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


def quick_facts(topics: frozenset[str], program: Path | None) -> dict[str, Any]:
    """What takes no time: by topic, secrets masked."""
    known = {
        "command": lambda: command_facts(program),
        "python": python_facts,
        "host": host_facts,
        "slurm": slurm_facts,
        "cuda": cuda_facts,
    }
    found = {topic: find() for topic, find in known.items() if topic in topics}
    return {topic: facts for topic, facts in found.items() if facts}


def command_facts(program: Path | None) -> dict[str, Any]:
    """How the process was started: `arguments` with secrets masked, `program`, and the folder it was started in."""
    found: dict[str, Any] = {"arguments": mask_arguments([_text(word) for word in sys.orig_argv])}
    if program is not None:
        found["program"] = _text(str(program.absolute()))
    try:
        found["folder"] = _text(str(Path.cwd()))
    except FileNotFoundError:  # it was deleted
        found["folder"] = None
    return found


def python_facts() -> dict[str, Any]:
    """Which interpreter this is."""
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": _text(sys.executable or ""),
        "prefix": _text(sys.prefix),
    }


def host_facts() -> dict[str, Any]:
    """Which machine this is, and as whom the process runs."""
    return {
        "host": platform.node() or None,
        "user": user_name(),
        "uid": os.getuid() if hasattr(os, "getuid") else None,
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def slurm_facts() -> dict[str, Any]:
    """The Slurm job, by the names of its variables without `SLURM_`; empty outside of one."""
    if environment("SLURM_JOB_ID") is None:
        return {}
    found = {name.lower(): environment(f"SLURM_{name}") for name in _SLURM}
    return {name: mask_text(_text(value)) for name, value in found.items() if value is not None}


def cuda_facts(driver: Path = _DRIVER) -> dict[str, Any]:
    """Driver and CUDA versions as far as they are known without loading anything; `reason` where there is no driver."""
    found: dict[str, Any] = {}
    try:
        said = driver.read_text(encoding="utf-8", errors="replace")
    except OSError:
        found |= {"driver": None, "reason": f"no NVIDIA driver ({driver} is not there)"}
    else:
        version = _VERSION.search(said.partition("\n")[0] + " ")
        found["driver"] = version[1] if version is not None else None
    for name in _CUDA:
        value = environment(name)
        if value is not None:
            found[name.lower()] = mask_text(_text(value))
    torch = loaded("torch")
    if torch is not None:
        try:
            found["torch"] = str(call_foreign(lambda: torch.__version__))
            found["torch_cuda"] = call_foreign(lambda: torch.version.cuda)
            found["torch_hip"] = call_foreign(lambda: torch.version.hip)
        except ForeignError as error:
            found["torch_reason"] = str(error)
    return {name: value for name, value in found.items() if value is not None or name == "driver"}


def _text(value: str) -> str:
    """A text of the system as UTF-8 can hold it."""
    return value.encode("utf-8", "replace").decode()

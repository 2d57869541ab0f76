"""Who a process is, by what anybody may read about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.model import GpuProcess
from gpu_monitor.sources.host import machine
from gpu_monitor.sources.host.experiments import SHARED_FOLDER, USER_FOLDER, Asker, Registry
from gpu_monitor.sources.host.proc_files import (
    clean,
    container_of,
    experiment_of,
    parse_stat,
    parse_status,
    program_name,
    slurm_job_of,
)

# The kernel takes at most 2 MiB of arguments and environment with the usual 8 MiB stack (execve(2)).
_LONGEST_ENVIRONMENT = 2 * 1024 * 1024
_LONGEST_COMMAND = 4096
_LONGEST_FILE = 64 * 1024
# Far more processes than ever share the GPUs of one machine; beyond it everything is read anew.
_MOST_KNOWN = 4096


@dataclass(frozen=True)
class _Known:
    """What does not change while a process lives. `found` is a description to copy from."""

    found: GpuProcess
    uid: int | None
    experiment_id: str | None


class ProcessDirectory:
    """Describes processes from /proc (core.ports.ProcessLookup), or through psutil where there is none.

    `mode` `names` gives the program's name without arguments, `full` the whole command line. What may
    not be read stays None. A process is read once; only its experiment is looked for each time,
    because it may begin later. `registries` are the folders the SDK registers in, `{uid}` in them being
    the user of the process.
    """

    def __init__(
        self,
        proc_root: str = "/proc",
        mode: str = "names",
        registries: tuple[str, ...] = (SHARED_FOLDER, USER_FOLDER),
    ) -> None:
        self._proc = Path(proc_root)
        self._is_full = mode == "full"
        self._boot_id = machine.boot_id(proc_root)
        self._registry = Registry(registries)
        self._known: dict[tuple[int, int], _Known] = {}
        self._users: dict[int, str] = {}
        self._has_proc = self._proc.is_dir()

    def describe(self, found: GpuProcess) -> GpuProcess:
        """`found` with what /proc tells about it; unchanged where it tells nothing (pid 0, vanished)."""
        if found.pid <= 0:
            return found
        if not self._has_proc:
            return self._describe_by_psutil(found)
        stat = parse_stat(self._read(found.pid, "stat"))
        if stat is None or found.start_ticks not in (None, stat.start_ticks):
            return found
        known = self._known.get((found.pid, stat.start_ticks))
        if known is None:
            known = self._look(found.pid, stat.comm, stat.start_ticks)
            after = parse_stat(self._read(found.pid, "stat"))
            if after is None or after.start_ticks != stat.start_ticks:
                return found  # it ended and its pid may be another's: nothing read in between is sure
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[found.pid, stat.start_ticks] = known
        return _merge(found, known.found, self._experiment(known))

    def _look(self, pid: int, comm: str, start_ticks: int) -> _Known:
        ids = parse_status(_text(self._read(pid, "status")))
        arguments = self._read(pid, "cmdline", _LONGEST_COMMAND).rstrip(b"\0").split(b"\0")
        cgroup = _text(self._read(pid, "cgroup"))
        if self._is_full:
            command = clean(_text(b" ".join(arguments)), _LONGEST_COMMAND) or clean(comm) or None
        else:
            command = program_name(comm, _text(arguments[0]))
        description = GpuProcess(
            pid,
            start_ticks=start_ticks,
            boot_id=self._boot_id,
            ns_pid=pid if ids.ns_pid is None else ids.ns_pid,
            user=self._user(ids.uid),
            command=command,
            container=container_of(cgroup),
            job=slurm_job_of(cgroup),
        )
        return _Known(description, ids.uid, experiment_of(self._read(pid, "environ", _LONGEST_ENVIRONMENT)))

    def _experiment(self, known: _Known) -> str | None:
        """The experiment by registration, which may change while the process runs, else by environment."""
        process = known.found
        if known.uid is None or process.start_ticks is None or process.ns_pid is None:
            return known.experiment_id
        pids = (process.ns_pid,) if process.ns_pid == process.pid else (process.ns_pid, process.pid)
        asker = Asker(known.uid, pids, process.start_ticks, process.boot_id)
        return self._registry.find(asker) or known.experiment_id

    def _user(self, uid: int | None) -> str | None:
        """The name of a user, or the number where the system has no name for it."""
        if uid is None:
            return None
        if uid not in self._users:
            import pwd  # exists on POSIX only

            try:
                self._users[uid] = pwd.getpwuid(uid).pw_name
            except (KeyError, OSError):
                return str(uid)  # not kept: the directory service may know it the next time
        return self._users[uid]

    def _read(self, pid: int, name: str, longest: int = _LONGEST_FILE) -> bytes:
        """The beginning of /proc/<pid>/<name>; empty where it may not be read or the process is gone."""
        try:
            with open(self._proc / str(pid) / name, "rb") as file:
                return file.read(longest)
        except OSError:
            return b""

    def _describe_by_psutil(self, found: GpuProcess) -> GpuProcess:
        """The same without /proc: `start_ticks` are hundredths of a second since 1970."""
        import psutil  # third-party; only needed where there is no /proc

        def ask(question: Callable[[], str | list[str]]) -> str | None:
            try:
                answer = question()
            except (psutil.Error, OSError):
                return None
            return clean(answer if isinstance(answer, str) else " ".join(answer), _LONGEST_COMMAND) or None

        try:
            process = psutil.Process(found.pid)
            start_ticks = round(process.create_time() * 100)
        except (psutil.Error, OSError):
            return found
        if found.start_ticks not in (None, start_ticks):
            return found
        return _merge(
            found,
            GpuProcess(
                found.pid,
                start_ticks=start_ticks,
                boot_id=self._boot_id,
                ns_pid=found.pid,
                user=ask(process.username),
                command=(ask(process.cmdline) if self._is_full else None) or ask(process.name),
            ),
            None,
        )


def _merge(found: GpuProcess, described: GpuProcess, experiment_id: str | None) -> GpuProcess:
    """What was learnt, with what was known before where nothing was learnt."""
    return GpuProcess(
        found.pid,
        found.kind,
        found.memory,
        described.start_ticks,
        described.boot_id or found.boot_id,
        described.ns_pid or found.ns_pid,
        described.user or found.user,
        described.command or found.command,
        described.container or found.container,
        described.job or found.job,
        experiment_id or found.experiment_id,
    )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")

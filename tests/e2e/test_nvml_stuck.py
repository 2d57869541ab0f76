"""A child that is stuck in the kernel and ignores SIGKILL; children that outlive the agent, which none may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_monitor.core.model import Span, Status
from gpu_monitor.sources.child import Process, SystemLauncher, Wiring
from tests.e2e.nvml_rig import Rig, living_children, rig_on
from tests.standin.control import Standin
from tests.standin.profiles import H100, L40S

pytest_plugins = ("tests.standin.fixtures",)

OK, HUNG = Status.OK, Status.HUNG
GRACE = {"grace_seconds": 1.0}
PATIENT = {**GRACE, "init_seconds": 30.0}
"""Where one probe decides: on a busy machine it takes its time, and the next one comes after ten minutes."""
FREEZER = Path("/sys/fs/cgroup/freezer")


class Immortal:
    """A process that does not obey being killed before `let_die`: real, but its killing is put off."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.may_die = False
        self.was_killed = False
        self.looks_left: int | None = None
        """Ends by itself after it was looked at so many times more."""

    def kill(self) -> None:
        self.was_killed = True
        if self.may_die:
            self._process.kill()

    def wait(self, seconds: float) -> int | None:
        if self.looks_left == 0:
            self.let_die()
        elif self.looks_left is not None:
            self.looks_left -= 1
        return self._process.wait(seconds)

    def let_die(self) -> None:
        """Obey from now on, also what was asked before."""
        self.may_die = True
        if self.was_killed:
            self._process.kill()
            assert self._process.wait(10) is not None


class ImmortalLauncher:
    """Starts immortals (core of the port: `start`)."""

    def __init__(self) -> None:
        self.started: list[Immortal] = []

    def start(self, command: Sequence[str], wiring: Wiring) -> Process:
        self.started.append(Immortal(SystemLauncher().start(command, wiring)))
        return self.started[-1]


@pytest.fixture
def launcher() -> Iterator[ImmortalLauncher]:
    made = ImmortalLauncher()
    yield made
    for process in made.started:
        process.may_die = True
        process.kill()
        assert process.wait(10) is not None, "a child outlived its test"


@pytest.fixture
def three(standin: Standin) -> Standin:
    standin.gpus([H100, L40S, H100])
    return standin


def alive(launcher: ImmortalLauncher) -> int:
    return sum(process.wait(0) is None for process in launcher.started)


def test_a_stuck_child_and_a_working_one(three: Standin, launcher: ImmortalLauncher) -> None:
    with rig_on(three, launcher=launcher, changes=PATIENT) as rig:
        rig.read(Span.WIDE)
        three.hang(1, "nvmlDeviceGetTemperature")
        rig.until([OK, HUNG, OK])
        assert alive(launcher) == 2
        assert launcher.started[0].was_killed
        # While it is stuck nobody probes its GPU, however long that takes.
        touched = three.calls("*", 1)
        for _ in range(3):
            rig.clock.push(1000)
            rig.read(Span.WIDE)
            assert rig.statuses == [OK, HUNG, OK]
        assert (alive(launcher), three.calls("*", 1)) == (2, touched)
        # Its end ends the hang.
        launcher.started[0].let_die()
        three.release(1)
        rig.until([OK] * 3)
        assert rig.kinds == ["gpu_hung", "gpu_recovered"]


@pytest.mark.parametrize("looks", range(4))
def test_a_stuck_child_that_ends_in_the_middle_of_a_round(
    three: Standin, launcher: ImmortalLauncher, looks: int
) -> None:
    """Whichever part of the round sees its end, its GPU is probed and comes back."""
    with rig_on(three, launcher=launcher, changes=PATIENT) as rig:
        rig.read(Span.WIDE)
        three.hang(1, "nvmlDeviceGetTemperature")
        rig.until([OK, HUNG, OK])
        three.release(1)
        launcher.started[0].looks_left = looks
        until_probed(rig, [OK] * 3)
        assert rig.kinds == ["gpu_hung", "gpu_recovered"]


def test_two_stuck_children_are_the_most_and_the_host_goes_on_alone(
    three: Standin, launcher: ImmortalLauncher
) -> None:
    with rig_on(three, launcher=launcher, changes=PATIENT) as rig:
        rig.read(Span.WIDE)
        three.hang(0, "nvmlDeviceGetTemperature")
        rig.until([HUNG, OK, OK])
        three.hang(1, "nvmlDeviceGetTemperature")
        rig.read()
        assert rig.last.paused == "driver hung"
        assert rig.statuses == [HUNG, HUNG], "nothing is said of the third: nobody can ask it"
        for _ in range(5):
            rig.clock.push(700)
            rig.read(Span.WIDE)
            assert rig.last.paused == "driver hung"
        assert (alive(launcher), len(launcher.started)) == (2, 2)
        launcher.started[1].let_die()
        three.release(1)
        rig.until([HUNG, OK, OK])
        launcher.started[0].let_die()
        three.release(0)
        rig.until([OK] * 3)
        assert sorted(rig.kinds) == ["gpu_hung", "gpu_hung", "gpu_recovered", "gpu_recovered"]


def test_a_child_stuck_in_init_pauses_everything_until_it_ends(
    three: Standin, launcher: ImmortalLauncher
) -> None:
    three.hang(None, "nvmlInit")
    with rig_on(three, launcher=launcher, changes={**GRACE, "init_seconds": 1.0}) as rig:
        rig.read(Span.WIDE)
        if rig.last.paused == "driver starting":  # a busy machine's clocks differ by more than a millisecond
            rig.read(Span.WIDE)
        assert rig.last.paused == "driver hung"
        for _ in range(3):
            rig.clock.push(1000)
            rig.read(Span.WIDE)
            assert rig.last.paused == "driver hung"
        assert len(launcher.started) == 1
        three.heal()
        launcher.started[0].let_die()
        rig.until([OK] * 3, Span.WIDE)
        assert rig.kinds == ["driver_hung", "driver_recovered"]


def test_a_probe_that_gets_stuck_is_the_one_stuck_child(three: Standin, launcher: ImmortalLauncher) -> None:
    with rig_on(three, launcher=launcher, changes=GRACE) as rig:
        rig.read(Span.WIDE)
        three.hang(1, "nvmlDeviceGetTemperature")
        launcher.started[0].let_die()
        rig.until([OK, HUNG, OK])
        calls = three.calls("nvmlDeviceGetTemperature", 1)
        rig.clock.push(601)
        rig.read()
        three.until_called("nvmlDeviceGetTemperature", 1, calls + 1)
        rig.clock.push(30)
        rig.read()
        assert alive(launcher) == 2
        rig.clock.push(3000)
        rig.read()
        assert (alive(launcher), rig.statuses) == (2, [OK, HUNG, OK])
        three.release(1)
        launcher.started[2].let_die()
        rig.until([OK] * 3)


def test_a_hang_while_a_probe_runs_takes_the_probes_place(three: Standin, launcher: ImmortalLauncher) -> None:
    with rig_on(three, launcher=launcher, changes=GRACE) as rig:
        rig.read(Span.WIDE)
        three.hang(1, "nvmlDeviceGetTemperature")
        launcher.started[0].let_die()
        rig.until([OK, HUNG, OK])
        calls = three.calls("nvmlDeviceGetTemperature", 1)
        rig.clock.push(601)
        rig.read()
        three.until_called("nvmlDeviceGetTemperature", 1, calls + 1)
        launcher.started[2].may_die = True
        launcher.started[1].may_die = True
        three.hang(2, "nvmlDeviceGetTemperature")
        rig.until([OK, HUNG, HUNG])
        assert alive(launcher) <= 2


# ------------------------------------------------------------------ the real thing: a frozen process


@contextmanager
def frozen_cgroup(name: str) -> Iterator[Path]:
    """A freezer of our own: what is frozen in it (cgroup v1) takes no signal, SIGKILL included."""
    if not (FREEZER / "tasks").exists():
        pytest.skip("THE UNKILLABLE CHILD IS NOT TESTED FOR REAL HERE: no cgroup v1 freezer on this machine")
    group = FREEZER / name
    try:
        group.mkdir()
    except PermissionError:
        pytest.skip("THE UNKILLABLE CHILD IS NOT TESTED FOR REAL HERE: the freezer needs root")
    try:
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        deadline = time.monotonic() + 10
        while (group / "tasks").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.01)
        group.rmdir()


def freeze(group: Path, pid: int) -> None:
    (group / "tasks").write_text(str(pid))
    (group / "freezer.state").write_text("FROZEN")
    deadline = time.monotonic() + 10
    while (group / "freezer.state").read_text().strip() != "FROZEN":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_process_that_the_kernel_does_not_let_die(three: Standin) -> None:
    with frozen_cgroup(f"gpu_monitor_test_{os.getpid()}") as group, rig_on(three, changes=PATIENT) as rig:
        rig.read(Span.WIDE)
        (child,) = rig.children()
        three.hang(2, "nvmlDeviceGetTemperature")
        asked = three.calls("nvmlDeviceGetTemperature", 2)
        worker = rig.source._worker
        assert worker is not None
        worker.ask_read(rig.clock.monotonic(), rig.clock.now(), 0)  # as a round does, so that it hangs now
        three.until_called("nvmlDeviceGetTemperature", 2, asked + 1)
        freeze(group, child)
        rig.clock.push(1.5)
        rig.until([OK, OK, HUNG])
        assert sorted(rig.children()) != [child]
        assert child in rig.children(), "killed, and still there"
        pending = int(_status(child, "ShdPnd"), 16) | int(_status(child, "SigPnd"), 16)
        assert pending & 1 << (signal.SIGKILL - 1), "SIGKILL waits for it"
        for _ in range(3):
            rig.clock.push(1000)
            rig.read(Span.WIDE)
        assert len(rig.children()) == 2
        assert rig.statuses == [OK, OK, HUNG]
        three.heal()
        (group / "freezer.state").write_text("THAWED")
        until_probed(rig, [OK] * 3)
        assert child not in rig.children()
        assert rig.kinds == ["gpu_hung", "gpu_recovered"]


def until_probed(rig: Rig, statuses: list[Status]) -> None:
    """Read until it is so. On a busy machine a probe may be too late; the next one comes ten minutes later."""
    for _ in range(8):
        try:
            rig.until(statuses, seconds=10)
            return
        except AssertionError:
            rig.clock.push(1000)
    rig.until(statuses)


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


# ------------------------------------------------------------------ no orphans

AGENT = """
import sys, time
from gpu_monitor.core.model import Span
from gpu_monitor.sources.gpu.nvml import NvmlSettings, NvmlSource
source = NvmlSource(NvmlSettings(deadline_seconds=60))
source.probe()
print("probed", flush=True)
while True:
    source.read(time.time(), Span.FAST)
    time.sleep(0.02)
"""


@contextmanager
def agent(standin: Standin) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads NVML as the agent does."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT], env={**os.environ, **standin.env()}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"probed\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not has_ended(pid):
        assert time.monotonic() < deadline, f"{pid} outlived its agent"
        time.sleep(0.005)


@pytest.mark.parametrize("hangs", [False, True])
def test_no_child_outlives_a_killed_agent_also_one_that_hangs_in_a_call(three: Standin, hangs: bool) -> None:
    with agent(three) as process:
        (child,) = living_children(three, process.pid)
        if hangs:
            three.hang(0, "nvmlDeviceGetTemperature")
            calls = three.calls("nvmlDeviceGetTemperature", 0)
            three.until_called("nvmlDeviceGetTemperature", 0, calls + 1)
        assert not has_ended(child)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_end(child)


def test_close_ends_every_child(three: Standin) -> None:
    with rig_on(three) as rig:
        rig.read(Span.WIDE)
        three.hang(1, "nvmlDeviceGetTemperature")
        rig.read()
        rig.clock.push(601)
        rig.read()
        children = rig.children()
        assert children
        rig.source.close()
        for child in children:
            wait_for_end(child)


def test_the_child_gets_no_descriptor_but_its_own(three: Standin, tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    try:
        with rig_on(three) as rig:
            rig.read(Span.WIDE)
            (child,) = rig.children()
            links = {os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()}
            assert str(tmp_path / "secret") not in links
            kinds = sorted(link.partition(":")[0] for link in links if str(three.path) not in link)
            # Standard streams, private output, lifeline, and two files in memory: errors and board.
            assert set(kinds) <= {"pipe", "/memfd", "/dev/null"}
            assert rig.source.name == "nvml"
    finally:
        os.close(secret)


def test_the_agents_own_process_never_loads_the_library(three: Standin) -> None:
    with agent(three) as process:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libnvidia-ml" not in maps
        (child,) = living_children(three, process.pid)
        assert "libnvidia-ml" in Path(f"/proc/{child}/maps").read_text()

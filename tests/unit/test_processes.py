"""Who a process is: hand-made /proc trees, hostile registrations, and real processes."""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.model import GpuProcess
from gpu_monitor.sources.host.proc_files import (
    container_of,
    experiment_of,
    parse_stat,
    parse_status,
    program_name,
    slurm_job_of,
)
from gpu_monitor.sources.host.processes import ProcessDirectory

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the real /proc of Linux")

BOOT = "49e5b8e3-77dd-4bd5-9443-e4c3940affd1"
ID = "4f2a" * 16
INNER = "beef" * 16
POD = "3c1b0f6e-2b1d-4c7e-9a53-0123456789ab"


def stat_line(pid: int, comm: str, start_ticks: int) -> str:
    """A line of /proc/<pid>/stat with distinct numbers, so that a wrong field is a wrong value."""
    before = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"  # fields 3 to 21
    return f"{pid} ({comm}) {before} {start_ticks} 23 24 25\n"


class Proc:
    """A /proc tree made by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text(BOOT + "\n")

    def add(
        self,
        pid: int,
        comm: str = "python3",
        start: int = 5000,
        uid: int | None = None,
        nspid: str | None = None,
        cmdline: bytes = b"python3\0train.py\0--secret\0hunter2\0",
        cgroup: str = "0::/user.slice\n",
        environ: bytes | None = None,
    ) -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "stat").write_text(stat_line(pid, comm, start))
        owner = os.getuid() if uid is None else uid
        (folder / "status").write_text(
            f"Name:\t{comm}\nPid:\t{pid}\nUid:\t{owner}\t0\t0\t0\nNSpid:\t{nspid or pid}\nThreads:\t3\n"
        )
        (folder / "cmdline").write_bytes(cmdline)
        (folder / "cgroup").write_text(cgroup)
        if environ is not None:
            (folder / "environ").write_bytes(environ)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    return folder


def directory(proc: Proc, registry: Path | None = None, mode: str = "names") -> ProcessDirectory:
    return ProcessDirectory(str(proc.root), mode, (str(registry),) if registry else ())


def register(folder: Path, name: str, **changes: object) -> Path:
    said = {
        "experiment_id": "20260101T000000-ab12",
        "pid": 77,
        "start_ticks": 5000,
        "boot_id": BOOT,
    } | changes
    path = folder / name
    path.write_text(json.dumps(said))
    return path


# --- the files of /proc


@pytest.mark.parametrize("comm", ["python3", "a) R 1 (b", "((", ")", "kworker/u4:2", ""])
def test_the_start_is_field_22_whatever_the_name(comm: str) -> None:
    stat = parse_stat(stat_line(42, comm, 987654).encode())
    assert stat is not None
    assert (stat.comm, stat.start_ticks) == (comm, 987654)


@pytest.mark.parametrize("content", [b"", b"1 (x", b"1 (x) S 2 3", b"garbage", b") ("])
def test_what_is_no_stat_file_is_nothing(content: bytes) -> None:
    assert parse_stat(content) is None


def test_the_innermost_pid_is_the_last_one() -> None:
    ids = parse_status("Name:\tx\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t4242\t77\t1\n")
    assert (ids.uid, ids.ns_pid) == (1000, 1)
    old_kernel = parse_status("Name:\tx\nUid:\t5\t5\t5\t5\n")
    assert (old_kernel.uid, old_kernel.ns_pid) == (5, None)


@given(st.binary(max_size=300))
def test_no_content_breaks_the_parsers(content: bytes) -> None:
    parse_stat(content)
    experiment_of(content)
    text = content.decode("utf-8", "replace")
    parse_status(text)
    container_of(text)
    slurm_job_of(text)
    program_name(text, text)


CONTAINERS = [
    ("0::/\n", None),
    ("0::/user.slice/user-1000.slice/session-4.scope\n", None),
    (f"12:memory:/docker/{ID}\n11:cpu:/docker/{ID}\n", "docker:4f2a4f2a4f2a"),
    (f"0::/system.slice/docker-{ID}.scope\n", "docker:4f2a4f2a4f2a"),
    (f"0::/system.slice/containerd.service/cri-containerd-{ID}.scope", "containerd:4f2a4f2a4f2a"),
    (
        "0::/kubepods.slice/kubepods-besteffort.slice/"
        f"kubepods-besteffort-pod{POD.replace('-', '_')}.slice/cri-containerd-{ID}.scope\n",
        f"containerd:4f2a4f2a4f2a/pod:{POD}",
    ),
    (f"3:devices:/kubepods/burstable/pod{POD}/{ID}\n", f"container:4f2a4f2a4f2a/pod:{POD}"),
    (
        f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/crio-{ID}.scope",
        f"crio:4f2a4f2a4f2a/pod:{POD}",
    ),
    (
        f"1:name=systemd:/system.slice/containerd.service/kubepods-burstable-pod{POD}.slice:cri-containerd:{ID}\n",
        f"containerd:4f2a4f2a4f2a/pod:{POD}",
    ),
    (f"0::/machine.slice/libpod-{ID}.scope/container\n", "podman:4f2a4f2a4f2a"),
    (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n",
        "podman:4f2a4f2a4f2a",
    ),
    ("0::/lxc.payload.web1/init.scope\n", "lxc:web1"),
    ("4:cpu:/lxc/web1\n", "lxc:web1"),
    ("0::/lxc.monitor.web1\n", None),
    # A container that runs containers: the innermost is where the process is.
    (f"0::/docker/{ID}/docker/{INNER}\n", "docker:beefbeefbeef"),
    # cgroup v1 hierarchies of which only one names the runtime.
    (f"5:cpu:/ecs/task/{ID}\n4:memory:/docker/{ID}\n", "docker:4f2a4f2a4f2a"),
    ("0::/system.slice/slurmstepd.scope/job_123/step_0/user/task_0\n", None),
]


@pytest.mark.parametrize(("cgroup", "expected"), CONTAINERS)
def test_containers(cgroup: str, expected: str | None) -> None:
    assert container_of(cgroup) == expected


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("0::/system.slice/slurmstepd.scope/job_123/step_0/user/task_0\n", "123"),
        ("0::/system.slice/node7_slurmstepd.scope/job_9/step_batch/user/task_special\n", "9"),
        (
            "7:memory:/slurm/uid_1000/job_4567/step_0/task_0\n1:name=systemd:/system.slice/slurmd.service\n",
            "4567",
        ),
        ("7:cpuset:/slurm_node1/uid_0/job_31/step_extern\n", "31"),
        (f"0::/system.slice/slurmstepd.scope/job_88/step_0/docker/{ID}\n", "88"),
        ("0::/user.slice/job_5\n", None),
        ("0::/system.slice/slurmd.service\n", None),
        ("", None),
    ],
)
def test_slurm_jobs(cgroup: str, expected: str | None) -> None:
    assert slurm_job_of(cgroup) == expected


@pytest.mark.parametrize(
    ("comm", "first", "expected"),
    [
        ("python3", "/usr/bin/python3", "python3"),
        ("train.py", "/usr/bin/python3", "train.py"),
        ("text-generation", "/opt/bin/text-generation-server", "text-generation-server"),
        ("text-generation", "text-generation-server --token=hunter2", "text-generation"),
        ("pt_main_thread", "/opt/conda/bin/python3.11", "python3.11"),
        ("pt_main_thread", "python train.py --password x", "pt_main_thread"),
        ("ray::Trainer.fi", "ray::Trainer.fit(key=hunter2)", "ray::Trainer.fit(key=hunter2)"),
        ("kworker/0:1", "", "kworker/0:1"),
        ("bash", "-bash", "bash"),
        ("a\nb", "", "a b"),
        ("", "", None),
    ],
)
def test_program_names(comm: str, first: str, expected: str | None) -> None:
    assert program_name(comm, first) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (b"PATH=/bin\0GPU_MONITOR_EXPERIMENT_ID=exp-1.a_B\0HOME=/\0", "exp-1.a_B"),
        (b"GPU_MONITOR_EXPERIMENT_ID=a b\0", None),
        (b"GPU_MONITOR_EXPERIMENT_ID=\0", None),
        (b"GPU_MONITOR_EXPERIMENT_ID=" + b"x" * 128, "x" * 128),
        (b"GPU_MONITOR_EXPERIMENT_ID=" + b"x" * 129, None),
        (b"GPU_MONITOR_EXPERIMENT_ID=../../etc/passwd\0", None),
        (b"GPU_MONITOR_EXPERIMENT_ID=id\n\0", None),
        (b"XGPU_MONITOR_EXPERIMENT_ID=no\0", None),
        (b"\xff\xfe\0\0", None),
    ],
)
def test_the_experiment_in_the_environment(environ: bytes, expected: str | None) -> None:
    assert experiment_of(environ) == expected


# --- describing a process


def test_a_process_is_described_and_what_was_known_stays(proc: Proc) -> None:
    proc.add(4242, nspid="4242\t77", cgroup=f"0::/system.slice/docker-{ID}.scope\n")
    found = GpuProcess(4242, kind="graphics", memory=8192)
    assert directory(proc).describe(found) == GpuProcess(
        4242,
        kind="graphics",
        memory=8192,
        start_ticks=5000,
        boot_id=BOOT,
        ns_pid=77,
        user=pwd.getpwuid(os.getuid()).pw_name,
        command="python3",
        container="docker:4f2a4f2a4f2a",
        job=None,
        experiment_id=None,
    )


def test_names_holds_no_argument_and_full_holds_all(proc: Proc) -> None:
    proc.add(9, cmdline=b"python3\0train.py\0--name\0a\nb\x1b[31m\0")
    assert directory(proc).describe(GpuProcess(9)).command == "python3"
    assert directory(proc, mode="full").describe(GpuProcess(9)).command == "python3 train.py --name a b [31m"


def test_a_kernel_thread_has_its_name_in_both_modes(proc: Proc) -> None:
    proc.add(9, comm="nvidia-modeset/", cmdline=b"")
    assert directory(proc).describe(GpuProcess(9)).command == "nvidia-modeset/"
    assert directory(proc, mode="full").describe(GpuProcess(9)).command == "nvidia-modeset/"


def test_a_user_without_a_name_is_a_number(proc: Proc) -> None:
    proc.add(9, uid=3999999991)
    assert directory(proc).describe(GpuProcess(9)).user == "3999999991"


@pytest.mark.parametrize("pid", [0, -1, 31337])
def test_no_such_process_changes_nothing(proc: Proc, pid: int) -> None:
    found = GpuProcess(pid, memory=4096, user="known")
    assert directory(proc).describe(found) is found


def test_another_process_under_a_known_pid_is_not_taken_for_it(proc: Proc) -> None:
    proc.add(9, start=5000)
    elder = GpuProcess(9, start_ticks=4000, user="elder")
    assert directory(proc).describe(elder) is elder


def test_unreadable_files_leave_nulls(proc: Proc) -> None:
    proc.add(9)
    for name in ("status", "cmdline", "cgroup"):
        (proc.root / "9" / name).unlink()
    described = directory(proc).describe(GpuProcess(9))
    assert (described.user, described.container, described.job) == (None, None, None)
    assert (described.start_ticks, described.command, described.ns_pid) == (5000, "python3", 9)


def test_a_process_is_read_once_and_a_new_one_under_its_pid_anew(proc: Proc) -> None:
    processes = directory(proc)
    proc.add(9, comm="first", start=5000)
    assert processes.describe(GpuProcess(9)).command == "first"
    proc.add(9, comm="changed", start=5000)
    assert processes.describe(GpuProcess(9)).command == "first"
    proc.add(9, comm="second", start=6000)
    assert processes.describe(GpuProcess(9)).command == "second"


# --- experiments


@pytest.mark.parametrize("name", ["77-5000.json", "any-other-name.json"])
def test_a_registration_names_the_experiment(proc: Proc, registry: Path, name: str) -> None:
    proc.add(77)
    register(registry, name)
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id == "20260101T000000-ab12"


def test_a_process_in_a_container_registers_its_inner_pid(proc: Proc, registry: Path) -> None:
    proc.add(4242, nspid="4242\t77")
    register(registry, "77-5000.json")
    assert directory(proc, registry).describe(GpuProcess(4242)).experiment_id == "20260101T000000-ab12"


def test_a_registration_may_come_later_and_change(proc: Proc, registry: Path) -> None:
    proc.add(77)
    processes = directory(proc, registry)
    assert processes.describe(GpuProcess(77)).experiment_id is None
    register(registry, "77-5000.json")
    assert processes.describe(GpuProcess(77)).experiment_id == "20260101T000000-ab12"
    register(registry, "77-5000.json", experiment_id="second")
    assert processes.describe(GpuProcess(77)).experiment_id == "second"
    (registry / "77-5000.json").unlink()
    assert processes.describe(GpuProcess(77)).experiment_id is None


def test_the_folder_of_the_user_counts_too(proc: Proc, tmp_path: Path) -> None:
    folder = tmp_path / "run" / str(os.getuid()) / "experiments"
    folder.mkdir(parents=True)
    proc.add(77)
    register(folder, "x.json")
    processes = ProcessDirectory(
        str(proc.root), registries=(str(tmp_path / "run" / "{uid}" / "experiments"),)
    )
    assert processes.describe(GpuProcess(77)).experiment_id == "20260101T000000-ab12"


def test_a_registration_goes_before_the_environment(proc: Proc, registry: Path) -> None:
    proc.add(77, environ=b"GPU_MONITOR_EXPERIMENT_ID=from-env\0")
    processes = directory(proc, registry)
    assert processes.describe(GpuProcess(77)).experiment_id == "from-env"
    register(registry, "77-5000.json")
    assert processes.describe(GpuProcess(77)).experiment_id == "20260101T000000-ab12"


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 78},
        {"pid": True},
        {"pid": "77"},
        {"pid": None},
        {"start_ticks": 5001},
        {"start_ticks": 5000.0},
        {"boot_id": "00000000-0000-0000-0000-000000000000"},
        {"boot_id": 5},
        {"experiment_id": "../../etc"},
        {"experiment_id": ""},
        {"experiment_id": "x" * 129},
        {"experiment_id": "ok\n"},
        {"experiment_id": None},
        {"padding": "x" * 5000},
    ],
)
@pytest.mark.parametrize("name", ["77-5000.json", "other.json"])
def test_a_registration_that_does_not_fit_is_not_believed(
    proc: Proc, registry: Path, name: str, changes: dict[str, object]
) -> None:
    proc.add(77)
    register(registry, name, **changes)
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"77", b"\xff\xfe", b"[" * 4000, b'{"pid": 1e999999}']
)
@pytest.mark.parametrize("name", ["77-5000.json", "other.json"])
def test_hostile_content_is_harmless(proc: Proc, registry: Path, name: str, content: bytes) -> None:
    proc.add(77)
    (registry / name).write_bytes(content)
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id is None


def test_links_pipes_and_folders_are_not_followed(proc: Proc, registry: Path, tmp_path: Path) -> None:
    proc.add(77)
    outside = register(tmp_path, "outside.json")
    (registry / "77-5000.json").symlink_to(outside)
    (registry / "link.json").symlink_to(outside)
    os.mkfifo(registry / "pipe.json")
    (registry / "folder.json").mkdir()
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id is None


def test_a_pipe_under_the_expected_name_does_not_hang(proc: Proc, registry: Path) -> None:
    proc.add(77)
    os.mkfifo(registry / "77-5000.json")
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_file_of_another_user_is_not_believed(proc: Proc, registry: Path) -> None:
    proc.add(77)
    path = register(registry, "77-5000.json")
    os.chown(path, 65534, 65534)
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id is None
    proc.add(78, uid=65534, nspid="78\t77")
    assert directory(proc, registry).describe(GpuProcess(78)).experiment_id == "20260101T000000-ab12"


def test_a_flood_of_files_cannot_hide_a_registration(proc: Proc, registry: Path) -> None:
    proc.add(77)
    for n in range(1500):
        (registry / f"flood{n}.json").touch()
    register(registry, "77-5000.json")
    assert directory(proc, registry).describe(GpuProcess(77)).experiment_id == "20260101T000000-ab12"


# --- real processes


def real_ticks(pid: int) -> int:
    """Start of a process, found by another way than ours: the name cut out, the rest split."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(re.sub(r"^\d+ \(.*\) ", "", text, flags=re.DOTALL).split()[19])


@contextmanager
def running_cat(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that has answered once, so that its exec is over; killed in the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["cat", "-"], env={"PATH": os.environ["PATH"], **environment}, **pipes) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"hello\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    with running_cat(GPU_MONITOR_EXPERIMENT_ID="real-1") as process:
        yield process


@linux_only
def test_a_real_process(cat: subprocess.Popen[bytes], registry: Path) -> None:
    processes = ProcessDirectory(registries=(str(registry),))
    described = processes.describe(GpuProcess(cat.pid))
    assert described.command == "cat"
    assert described.start_ticks == real_ticks(cat.pid)
    assert described.ns_pid == cat.pid
    assert described.user == pwd.getpwuid(os.getuid()).pw_name
    assert described.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert described.experiment_id == "real-1"
    register(
        registry,
        "mine.json",
        pid=cat.pid,
        start_ticks=described.start_ticks,
        boot_id=described.boot_id,
    )
    assert processes.describe(GpuProcess(cat.pid)).experiment_id == "20260101T000000-ab12"
    full = ProcessDirectory(mode="full", registries=())
    assert full.describe(GpuProcess(cat.pid)).command == "cat -"


@linux_only
def test_a_process_that_has_just_ended_is_left_as_it_was() -> None:
    processes = ProcessDirectory(registries=())
    with running_cat() as process:
        assert processes.describe(GpuProcess(process.pid)).command == "cat"
    gone = GpuProcess(process.pid, memory=4096)
    assert processes.describe(gone) is gone


@linux_only
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_real_process_in_its_own_pid_namespace() -> None:
    if (
        subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode
        != 0
    ):
        pytest.skip("new pid namespaces are not permitted here")
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo ready; exec sleep 600"]
    outer = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert outer.stdout is not None
        select.select([outer.stdout], [], [], 30)
        assert outer.stdout.readline() == b"ready\n"
        inner = psutil.Process(outer.pid).children()[0].pid
        described = ProcessDirectory(registries=()).describe(GpuProcess(inner))
        assert inner != 1
        assert described.ns_pid == 1
        assert described.start_ticks == real_ticks(inner)
    finally:
        outer.kill()  # its child dies with it (--kill-child)
        outer.wait()
        assert outer.stdout is not None
        outer.stdout.close()


@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look with another user's eyes")
def test_another_user_sees_all_but_the_environment(cat: subprocess.Popen[bytes]) -> None:
    # A service's user may read stat, status, cgroup and the short name of root's process, not its environ.
    source = Path(__file__).parents[2] / "src"
    code = (
        "import os, sys; sys.path[:] = eval(sys.argv[2]);"
        "from gpu_monitor.core.model import GpuProcess;"
        "from gpu_monitor.sources.host.processes import ProcessDirectory;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "d = ProcessDirectory(registries=()).describe(GpuProcess(int(sys.argv[1])));"
        "print(d.command, d.user, d.start_ticks, d.ns_pid, d.experiment_id)"
    )
    arguments = [sys.executable, "-c", code, str(cat.pid), repr([str(source), *sys.path])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    expected = f"cat {pwd.getpwuid(os.getuid()).pw_name} {real_ticks(cat.pid)} {cat.pid} None"
    assert done.stdout.strip() == expected


@linux_only
def test_without_proc_psutil_answers(tmp_path: Path) -> None:
    processes = ProcessDirectory(str(tmp_path / "no-proc"), registries=())
    with running_cat() as process:
        described = processes.describe(GpuProcess(process.pid, memory=4096))
        assert described.command == "cat"
        assert described.user == pwd.getpwuid(os.getuid()).pw_name
        assert described.memory == 4096
        assert described.start_ticks is not None
        # Hundredths of a second since 1970: boot time and ticks since boot tell the same moment.
        btime = int(re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)[1])  # type: ignore[index]
        started = btime + real_ticks(process.pid) / os.sysconf("SC_CLK_TCK")
        assert described.start_ticks / 100 == pytest.approx(started, abs=2.0)
    assert processes.describe(GpuProcess(process.pid)) == GpuProcess(process.pid)

"""CPU and memory of process trees, as scripts/bench counts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.measure.tree import ProcessTree, cpu_seconds, memory_of, read_smaps

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NOT RUN: needs Linux's /proc")

# Two mappings of one library (text and data, of which 8 kB were written to), the heap, and a device.
SMAPS = """55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                 100 kB
Pss:                 100 kB
Anonymous:           100 kB
7f0000000000-7f0000100000 r-xp 00020000 fe:00 4242                       /usr/lib/libpython3.11.so.1.0
Size:               1024 kB
Rss:                 600 kB
Pss:                 200 kB
Anonymous:             0 kB
7f0000100000-7f0000110000 rw-p 00120000 fe:00 4242                       /usr/lib/libpython3.11.so.1.0
Size:                 64 kB
Rss:                  40 kB
Pss:                  18 kB
Anonymous:             8 kB
7f0000200000-7f0000300000 ---p 00000000 00:00 0
Size:               1024 kB
Rss:                   0 kB
Pss:                   0 kB
Anonymous:             0 kB
"""


def test_smaps_tells_private_pages_from_those_of_files() -> None:
    pss, anonymous, files = read_smaps(SMAPS)
    assert pss == (100 + 200 + 18) * 1024
    assert anonymous == (100 + 8) * 1024
    assert files == {"fe:00:4242:00020000:r-xp": 600 * 1024, "fe:00:4242:00120000:rw-p": 32 * 1024}


# Spends some CPU, tells how much, waits for a line, and is gone; its child does the same within it.
BURN = """
import subprocess, sys, time
child = None
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
while time.process_time() < 0.2:
    sum(range(1000))
block = bytearray(20_000_000)
spent = time.process_time()
if child is not None:
    spent = f"{spent} {child.stdout.readline().strip()} {child.pid}"
print(spent, flush=True)
sys.stdin.readline()
if child is not None:
    child.communicate("\\n")
    print("child gone", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def burning() -> Iterator[subprocess.Popen[str]]:
    """A process with a child; both have spent 0.2 s of CPU and hold 20 MB once they have printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURN, BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_cpu_of_a_tree_is_that_of_all_its_processes_also_those_that_ended(
    burning: subprocess.Popen[str],
) -> None:
    own, childs, child_pid = hear(burning).split()
    tree = ProcessTree(burning.pid)
    assert set(tree.pids()) == {burning.pid, int(child_pid)}
    before = tree.cpu_seconds()
    assert before >= float(own) + float(childs)
    say(burning)
    assert hear(burning) == "child gone"
    assert tree.pids() == [burning.pid]
    assert tree.cpu_seconds() >= before
    assert [name for name, _ in tree.by_process()] == [f"agent {burning.pid}", f"child {child_pid}"]
    assert cpu_seconds(int(child_pid)) is None


def test_memory_counts_shared_files_once(burning: subprocess.Popen[str]) -> None:
    child = int(hear(burning).split()[2])
    one, two = memory_of([burning.pid]), memory_of([burning.pid, child])
    added = two.alone - one.alone
    assert added > 20_000_000, "the child's own block"
    assert added < memory_of([child]).alone, "Python's own files are not counted again"
    assert one.pss <= one.alone, "with every file counted in full it is never less"
    assert len(two.by_process) == 2
    assert memory_of([2**22 + 1]).alone == 0

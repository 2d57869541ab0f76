"""The notifier against a real datagram socket that another process reads."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.service.notify import Notifier

# Binds the address it is given, says so, and prints every datagram as one line of its repr.
LISTENER = """
import socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = sys.argv[1]
link.bind("\\0" + address[1:] if address.startswith("@") else address)
print("bound", flush=True)
while True:
    print(repr(link.recv(4096)), flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOTIFY_SOCKET is systemd's, so Linux only")


class Listener:
    """A service manager's ear in another process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTENER, address], stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "bound"

    def line(self) -> str:
        """The next line the listener printed."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End the listener."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(params=["file", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@gpu-monitor-test-{tmp_path}"
    ear = Listener(address)
    yield ear
    ear.close()


def test_every_message_arrives_as_systemd_reads_it(listener: Listener) -> None:
    notifier = Notifier(listener.address)
    notifier.ready()
    assert listener.line() == "b'READY=1'"
    notifier.watchdog()
    assert listener.line() == "b'WATCHDOG=1'"
    notifier.stopping()
    assert listener.line() == "b'STOPPING=1'"
    assert notifier.last_error is None


def test_a_status_stays_one_line(listener: Listener) -> None:
    Notifier(listener.address).status("8 GPUs,\nREADY=1  sampled at 12:00 °C")
    assert listener.line() == repr("STATUS=8 GPUs, READY=1 sampled at 12:00 °C".encode())


def test_reloading_carries_the_monotonic_clock(listener: Listener) -> None:
    Notifier(listener.address).reloading()
    first, stamp = ast.literal_eval(listener.line()).decode().split("\n")
    assert first == "RELOADING=1"
    name, microseconds = stamp.split("=")
    assert name == "MONOTONIC_USEC"
    # /proc/uptime counts from the same boot; it also counts sleep, so it is only an upper bound.
    uptime_seconds = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < int(microseconds) <= (uptime_seconds + 1) * 1_000_000


def test_a_manager_that_went_away_is_an_error_on_record_and_no_exception(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    notifier.watchdog()
    assert notifier.last_error is not None
    assert "gone" in notifier.last_error


def test_a_queue_that_nobody_empties_does_not_hold_up_the_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier(str(tmp_path / "deaf"))
        while notifier.last_error is None:  # until the kernel's queue is full
            notifier.watchdog()
        assert "timed out" in notifier.last_error
        for _ in range(20):
            deaf.recv(100, socket.MSG_DONTWAIT)
            notifier.watchdog()
            if notifier.last_error is None:
                break
        assert notifier.last_error is None


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier.from_environment(environment, os.getpid())
    assert not notifier.is_listened_to
    for send in (notifier.ready, notifier.watchdog, notifier.reloading, notifier.stopping):
        send()
    notifier.status("unheard")
    assert notifier.last_error is None


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "77"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_patience(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment(environment, 77).watchdog_seconds == seconds


def test_the_environment_names_the_socket(listener: Listener) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": listener.address}, os.getpid())
    assert notifier.is_listened_to
    notifier.ready()
    assert listener.line() == "b'READY=1'"

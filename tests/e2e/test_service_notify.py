"""The real agent under a service manager's ear: what systemd would hear from start to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOTIFY_SOCKET is systemd's, so Linux only")
# Only so that a silent agent fails the test instead of hanging it.
LONGEST_WAIT_SECONDS = 60
MOST_MESSAGES = 60


class Managed:
    """The agent, started as the unit starts it, and the socket it talks to."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.json"
        self.write_config(interval_seconds=1)
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(str(folder / "notify"))
        self.ear.settimeout(1.0)
        self.log = (folder / "console").open("w+")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "120000000",
            "STATE_DIRECTORY": str(folder),
        }
        argv = [sys.executable, "-m", "gpu_monitor", "--simulate", "2", "--config", str(self.config)]
        self.process = subprocess.Popen(argv, env=environment, cwd=folder, stdout=self.log, stderr=self.log)

    def write_config(self, interval_seconds: int) -> None:
        """The configuration with another interval."""
        self.config.write_text(json.dumps({"collection": {"interval_seconds": interval_seconds}}))

    def hear(self, wanted: str) -> list[str]:
        """All messages up to the first that begins so; fails where the agent ends or only says others."""
        heard: list[str] = []
        patience = LONGEST_WAIT_SECONDS
        while patience > 0 and len(heard) < MOST_MESSAGES:
            try:
                heard.append(self.ear.recv(4096).decode())
            except TimeoutError:
                patience = patience - 1 if self.process.poll() is None else 0
            else:
                if heard[-1].startswith(wanted):
                    return heard
        self.log.seek(0)
        pytest.fail(f"no {wanted!r} among {heard}; the console says: {self.log.read()}")

    def close(self) -> None:
        """End the agent, however far it came."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.ear.close()
        self.log.close()


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    agent = Managed(tmp_path)
    yield agent
    agent.close()


def test_systemd_hears_of_the_whole_life(managed: Managed, tmp_path: Path) -> None:
    assert "STOPPING=1" not in managed.hear("READY=1")
    assert (tmp_path / "gpu_metrics.db").exists(), "ready means that it stores"
    managed.hear("WATCHDOG=1")
    managed.write_config(interval_seconds=2)
    managed.process.send_signal(signal.SIGHUP)
    reloading = managed.hear("RELOADING=1")[-1]
    assert "\nMONOTONIC_USEC=" in reloading
    managed.hear("READY=1")
    assert "SIMULATED" in managed.hear("STATUS=")[-1]
    managed.hear("WATCHDOG=1")
    managed.process.send_signal(signal.SIGTERM)
    managed.hear("STOPPING=1")
    assert managed.process.wait(LONGEST_WAIT_SECONDS) == 0

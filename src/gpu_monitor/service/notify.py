"""What the agent tells the service manager that started it (systemd's notification protocol)."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from gpu_monitor.core.clock import process_seconds

# systemd reads its socket at once; a full queue must not hold up a sample (the bar is one second).
SEND_TIMEOUT_SECONDS = 0.5


class Notifier:
    """Tells the service manager how the agent is; does nothing where none listens.

    No call raises or waits longer than half a second. A message that could not be delivered leaves its
    reason in `last_error` (None after a delivered one). Safe from several threads.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self._watchdog_seconds = watchdog_seconds
        self.last_error: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """The notifier for process `pid` that `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID` describe."""
        address = environment.get("NOTIFY_SOCKET", "")
        return cls(address if address[:1] in ("/", "@") else None, _watchdog_seconds(environment, pid))

    @property
    def is_listened_to(self) -> bool:
        """Whether a service manager waits for messages."""
        return self._address is not None

    @property
    def watchdog_seconds(self) -> float | None:
        """The service is killed when `watchdog` is silent for so many seconds; None: nobody watches."""
        return self._watchdog_seconds

    def ready(self) -> None:
        """The agent has started (or has finished reloading): it samples and stores."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> None:
        """The agent is alive; to be called at least twice in every `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that it is done."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(process_seconds() * 1_000_000)}")

    def stopping(self) -> None:
        """The agent has begun to stop."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        """Deliver one datagram."""
        if self._address is None:
            return
        # "@" stands for the zero byte that begins the name of a socket outside the file system.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
                link.settimeout(SEND_TIMEOUT_SECONDS)
                link.sendto(message.encode(), address)
        except OSError as error:
            self.last_error = f"cannot notify the service manager at {self._address}: {error}"
        else:
            self.last_error = None


def _watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    """The watchdog's patience in seconds; None without one, or where it watches another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if watched and watched != str(pid):
        return None
    return int(microseconds) / 1_000_000

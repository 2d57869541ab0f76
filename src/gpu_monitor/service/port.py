"""What every kind of service offers to the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gpu_monitor.service.configuration import Configuration
from gpu_monitor.service.steps import Step


@dataclass(frozen=True)
class Status:
    """How a service is: whether it is installed, whether it runs, and lines for people."""

    is_installed: bool
    is_running: bool
    lines: tuple[str, ...]


class Service(Protocol):
    """The agent as a service of one operating system. Nothing here changes the machine."""

    def require_possible(self, configuration: Configuration) -> None:
        """GpuMonitorError with what to do where `install` cannot succeed here."""
        ...

    def install(self, configuration: Configuration) -> list[Step]:
        """Steps that write the service, start it, and start it at boot; done twice they change nothing."""
        ...

    def uninstall(self, purge: bool) -> list[Step]:
        """Steps that stop and remove the service; with `purge` also all that it recorded."""
        ...

    def status(self) -> Status:
        """How the service is now."""
        ...

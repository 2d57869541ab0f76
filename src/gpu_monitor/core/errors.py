# SPDX-License-Identifier: MIT
"""The one tree of errors: each leaf has an exit code and says what to do next."""

from __future__ import annotations

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NOTHING, EXIT_CONFIG = 0, 1, 2, 3, 78


class GpuMonitorError(Exception):
    """Something failed: `message` says what and on what, `hint` what to do next."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(GpuMonitorError):
    """The command line cannot be understood."""

    exit_code = EXIT_USAGE


class NothingFound(GpuMonitorError):
    """The question was understood and nothing answers it."""

    exit_code = EXIT_NOTHING


class ConfigError(GpuMonitorError):
    """The configuration is missing, unreadable, or asks for something impossible."""

    exit_code = EXIT_CONFIG


class SourceUnavailable(GpuMonitorError):
    """A source cannot give readings now (no driver, no card, driver hung)."""


class NotSupported(SourceUnavailable):
    """This machine can never give what was asked for."""


class DeviceLost(SourceUnavailable):
    """One device stopped answering."""


class LogUnreadable(GpuMonitorError):
    """A recorded log cannot be taken as it is: the message names the file and what does not fit."""


class StorageError(GpuMonitorError):
    """The store cannot be used as asked."""


class StorageBusy(StorageError):
    """Another process holds the store (or a short lock on it) for too long."""


class StorageFull(StorageError):
    """The disk (or the page limit) has no room for the write."""


class StorageCorrupt(StorageError):
    """The file is a damaged database."""


class StorageForeign(StorageError):
    """The file is not ours, or was written by a newer version: it is left untouched."""


class StorageUnreachable(StorageError):
    """The database server does not answer now; what was acknowledged is in it."""


class Retryable(GpuMonitorError):
    """A delivery failed and may be tried again after `after` seconds (None: as the back-off says)."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Rejected(GpuMonitorError):
    """The other side will never take this; `message` holds its reasons."""


class Unauthorised(GpuMonitorError):
    """The other side does not let us in."""


class WireVersionError(GpuMonitorError):
    """The bytes are of a schema this program does not read."""

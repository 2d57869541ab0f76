"""The configuration file a service runs with: named by the user, already there, or written anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.config import load
from gpu_monitor.config.model import Settings
from gpu_monitor.core.errors import ConfigError


@dataclass(frozen=True)
class Folders:
    """Where a service keeps its files: `config` a file, `state` and `logs` folders."""

    config: Path
    state: Path
    logs: Path

    @property
    def owned(self) -> tuple[Path, Path]:
        """The folders that belong to the service whatever its configuration says."""
        return (self.state, self.logs)


@dataclass(frozen=True)
class Configuration:
    """A configuration file that was read and found good, or `new_text` that will be written to `path`."""

    path: Path
    settings: Settings
    is_default: bool
    new_text: str | None = None

    def folders_outside(self, folders: Folders) -> tuple[Path, ...]:
        """Folders of files that the settings name, where those are none of the service's own."""
        named = [self.settings.database.file, self.settings.logging.file]
        parents = {(folders.state / Path(name)).parent for name in named if name is not None}
        return tuple(
            sorted(
                folder for folder in parents if not any(folder.is_relative_to(own) for own in folders.owned)
            )
        )


def choose_configuration(named: str | None, folders: Folders) -> Configuration:
    """The file named, else the service's usual one, which is written where there is none.

    ConfigError where a file is missing, cannot be read, or says something impossible: the service would
    only refuse to start.
    """
    if named is not None:
        path = Path(named).expanduser().absolute()
        return Configuration(path, load.read_file(path), is_default=path == folders.config)
    if folders.config.exists():
        return Configuration(folders.config, load.read_file(folders.config), is_default=True)
    text = default_text(folders)
    return Configuration(folders.config, load.parse(text, folders.config), is_default=True, new_text=text)


def default_text(folders: Folders) -> str:
    """A configuration for a machine that reports to nobody yet, with absolute paths."""
    defaults = Settings()
    settings = {
        "collection": {
            "interval_seconds": defaults.collection.interval_seconds,
            "aggregation_interval_hours": defaults.collection.aggregation_interval_hours,
        },
        "database": {"file": str(folders.state / defaults.database.file)},
        "logging": {"file": str(folders.logs / "gpu_monitor.log"), "level": defaults.logging.level},
    }
    return json.dumps(settings, indent=2) + "\n"


def require_readable(path: Path, blocked: Path | None) -> None:
    """ConfigError where `blocked`, a part of the way to the file, is closed to the service's own user."""
    if blocked is not None:
        raise ConfigError(
            f"the service's own user cannot read {path}: {blocked} is closed to other users",
            f"Copy it to {load.system_file()} with mode 0644 and leave --config out.",
        )

# SPDX-License-Identifier: MIT
"""The SDK's settings: from arguments, the environment, `.env` of the working directory, the configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gpu_monitor.config.env_file import ENV_FILE, env_lines, env_pair
from gpu_monitor.config.load import environment, find_token, parse, search_path, state_directory, url_problem
from gpu_monitor.config.local import state_home
from gpu_monitor.config.model import SECTIONS
from gpu_monitor.core.errors import ConfigError

SERVER, TOKEN, TOKEN_FILE = "GPU_MONITOR_SERVER", "GPU_MONITOR_TOKEN", "GPU_MONITOR_TOKEN_FILE"
DIRECTORY, STRICT = "GPU_MONITOR_DIR", "GPU_MONITOR_STRICT"
EXPERIMENT_ID = "GPU_MONITOR_EXPERIMENT_ID"
"""What a run leaves in its environment for its children; never read as a setting."""
REGISTRY = "gpu_monitor/experiments"
SHARED_REGISTRY = f"/run/{REGISTRY}"
"""Where runs of every user register, if the service made it; else in the same place under `$XDG_RUNTIME_DIR`."""
NAMES = (SERVER, TOKEN, TOKEN_FILE, DIRECTORY, STRICT)
DEFAULT_DIRECTORY = "experiments"
_REPORTS = "/api/metrics"
"""What the agent's `server.url` ends with: experiments go to the server that takes reports there."""
_LARGEST = 1_000_000
_SWITCHES = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True)
class TrainingSettings:
    """What the SDK goes by. `server`: the address in front of `/api/`; None: nothing is uploaded.

    `token` is what was given as a word, `token_file` where one stands; `read_token` reads either. `ca_file`: PEM of
    the authority that signed the server's certificate, beside the usual ones.
    """

    directory: Path
    server: str | None = None
    strict: bool = False
    token: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None

    def __repr__(self) -> str:
        return f"TrainingSettings(directory={str(self.directory)!r}, server={self.server!r}, strict={self.strict})"

    def read_token(self) -> str | None:
        """The token as it is now: a file is read anew each time. None where there is none; ConfigError as `find_token`."""
        return find_token(self.token, self.token_file, self.server)


def load_training(
    server: str | None = None,
    directory: str | Path | None = None,
    strict: bool | None = None,
    working: Path | None = None,
) -> TrainingSettings:
    """The settings: what is given here, then the environment, `.env`, the configuration file, the defaults.

    `server` "" means none, whatever stands elsewhere. A server that only the configuration file names is used where
    there is a token for it. A `config.json` that is another program's is passed over. ConfigError names the place.
    """
    here = (working or Path.cwd()).absolute()
    found = {**_from_env_file(here / ENV_FILE), **_from_environment()}
    place = (
        here
        / Path(directory if directory is not None else found.get(DIRECTORY, DEFAULT_DIRECTORY)).expanduser()
    )
    is_strict = strict if strict is not None else _switch(found.get(STRICT))
    named = found.get(TOKEN_FILE)
    file = here / Path(named).expanduser() if named else None
    settings = TrainingSettings(place, None, is_strict, found.get(TOKEN), file)
    given = server if server is not None else found.get(SERVER)
    if given is not None:
        said = "the server" if server is not None else SERVER
        return _with_server(settings, given, _of_agent(here), said)
    return _with_agents_server(settings, _of_agent(here))


@dataclass(frozen=True)
class _Agent:
    """What the agent's configuration says of its server."""

    server: str
    token_file: Path | None
    ca_file: Path | None


def _with_agents_server(settings: TrainingSettings, agent: _Agent | None) -> TrainingSettings:
    if agent is None:
        return settings
    joined = _joined(settings, agent.server, agent)
    try:
        return joined if joined.read_token() is not None else settings
    except ConfigError:
        # The service's token, say, which this user may not read: the agent's server is not this user's then.
        return settings


def _with_server(settings: TrainingSettings, given: str, agent: _Agent | None, said: str) -> TrainingSettings:
    if not given:
        return settings
    server = base_address(given, said)
    # A token of one server is never shown to another.
    return _joined(settings, server, agent if agent is not None and agent.server == server else None)


def _joined(settings: TrainingSettings, server: str, agent: _Agent | None) -> TrainingSettings:
    return TrainingSettings(
        settings.directory, server, settings.strict, settings.token,
        settings.token_file or (agent.token_file if agent else None), agent.ca_file if agent else None,
    )  # fmt: skip


def base_address(url: str, said: str = "the server") -> str:
    """The address in front of `/api/`, from one with or without the place of reports. ConfigError where it is none.

    `said`: what the address was given as.
    """
    text = url.strip()
    if not text.isprintable() or not text.lower().startswith(("http://", "https://")):
        raise ConfigError(
            f"{said}: {text[:100]!r} is no address of a server",
            "Write an address that begins with http:// or https://.",
        )
    problem = url_problem(text)
    if problem is not None:
        raise ConfigError(
            f"{said}: the address {problem[0]}", f"The token stands in {TOKEN} or {TOKEN_FILE}."
        )
    if "?" in text or "#" in text:
        raise ConfigError(f"{said}: the address holds a query or a fragment", "Write https://host:port.")
    return text.rstrip("/").removesuffix(_REPORTS).rstrip("/")


def _from_environment() -> dict[str, str]:
    values = {name: environment(name) for name in NAMES}
    return {name: value for name, value in values.items() if value is not None}


def _from_env_file(path: Path) -> dict[str, str]:
    """Our settings in a `.env`; lines of others, whatever they look like, are none of our business."""
    pairs = (env_pair(line) for _, line in env_lines(path))
    return {pair[0]: pair[1] for pair in pairs if pair is not None and pair[0] in NAMES and pair[1]}


def _switch(text: str | None) -> bool:
    if text is None:
        return False
    if text.lower() not in _SWITCHES:
        raise ConfigError(f"{STRICT}={text[:40]!r}: true or false was expected", "The default is false.")
    return _SWITCHES[text.lower()]


def _of_agent(here: Path) -> _Agent | None:
    """The server of the agent's configuration, the first that is found; None where it has none."""
    for path in search_path(here):
        text = _read(path)
        if text is None:
            continue
        server = parse(text, path).server
        if server.url is None:
            return None
        base = state_directory(here)
        return _Agent(
            base_address(server.url),
            base / Path(server.token_file).expanduser() if server.token_file else None,
            base / Path(server.ca_file).expanduser() if server.ca_file else None,
        )
    return None


def _read(path: Path) -> str | None:
    """The text of a configuration of ours; None where there is none, or one of another program."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8-sig")
        whole: Any = msgspec.json.decode(text)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None
    return text if isinstance(whole, Mapping) and whole and set(whole) <= set(SECTIONS) else None


def registries(user: str = "*") -> tuple[str, ...]:
    """Where trainings register, for an agent: the service's folder, and those of the users whose we may read.

    `user`: what stands for the number of a user, in folders of which there is one for each.
    """
    state = state_place()
    own = [*own_directories(), *([] if state is None else [state])]
    return (SHARED_REGISTRY, f"/run/user/{user}/{REGISTRY}", *(str(place / REGISTRY) for place in own))


def own_directories() -> tuple[Path, ...]:
    """Where the user's own runs may register, in order: what lasts as long as a login.

    `$XDG_RUNTIME_DIR`, which batch systems and cron do not set, and the usual place. In a container there is neither.
    """
    found = environment("XDG_RUNTIME_DIR")
    places = [Path(found)] if found is not None and found.startswith("/") else []
    if hasattr(os, "getuid"):
        places.append(Path(f"/run/user/{os.getuid()}"))
    return tuple(dict.fromkeys(places))


def state_place() -> Path | None:
    """Where they register else: what the user's state directory lies in. None for a user without a home."""
    try:
        return state_home(os.environ).parent
    except RuntimeError:
        return None

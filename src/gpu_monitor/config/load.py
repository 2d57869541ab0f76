# SPDX-License-Identifier: MIT
"""Finds, reads and checks the configuration; the only place that reads the environment."""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from gpu_monitor.config.local import LOCAL_FILE, local_token, state_home
from gpu_monitor.config.model import SECTIONS, Settings
from gpu_monitor.config.position import Positions, find_positions
from gpu_monitor.core.errors import ConfigError

FILE_NAME = "config.json"
_SHOWS_ALL = "config.example.json shows every key with its default."
_LARGEST = 1_000_000
"""Bytes of a configuration file; one with every key takes under 2,000."""
_COMPANIONS = ("", "-wal", "-shm", ".lock", ".agent", ".ballast", ".node.json", ".token.json")
"""What lies beside a store and is named after it."""
_SHORTEST_TOKEN = 8
"""Characters: a shorter one is soon guessed, and cannot be masked in logs without hiding other words."""
SYSTEM_FILE = Path("/etc/gpu_monitor/config.json")


@dataclass(frozen=True)
class Loaded:
    """Settings and where they came from. `path` None: defaults only. `base`: what relative paths start at."""

    settings: Settings
    path: Path | None
    base: Path

    def resolve(self, name: str) -> Path:
        """The absolute path of a file named in the configuration."""
        return (self.base / Path(name).expanduser()).absolute()

    @property
    def store(self) -> Path:
        """The absolute path of the store."""
        return self.resolve(self.settings.database.file)

    @property
    def offline(self) -> bool:
        """Whether no server is configured."""
        return self.settings.server.url is None


def user_directory() -> Path:
    """The user's configuration directory of this program."""
    if sys.platform == "win32":
        root = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
        return Path(root) / "gpu_monitor"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gpu_monitor"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "gpu_monitor"


def local_token_file() -> Path | None:
    """Where servers on loopback write the tokens for this user (see `config.local`); None for one without a home."""
    try:
        return state_home(os.environ) / LOCAL_FILE
    except RuntimeError:  # a service account without HOME and without an entry in the user database
        return None


def system_file() -> Path:
    """The configuration of the installed system service."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA") or r"C:\ProgramData") / "gpu_monitor" / FILE_NAME
    return SYSTEM_FILE


def search_path(working: Path) -> list[Path]:
    """Where a configuration is looked for when none is named, in order."""
    try:
        own = [user_directory() / FILE_NAME]
    except RuntimeError:  # a service account without HOME and without an entry in the user database
        own = []
    return [working / FILE_NAME, *own, system_file()]


def state_directory(working: Path) -> Path:
    """What relative paths start at: the service's state directory, else the working directory."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else working


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known here: {', '.join(known)}."


def _known(path: str) -> list[str]:
    section = SECTIONS.get(path)
    return list(section.__struct_fields__) if section else list(SECTIONS)


def _explain(error: msgspec.ValidationError, positions: Positions, path: Path) -> ConfigError:
    text = str(error)
    match = re.search(r" - at `\$\.?(.*)`$", text)
    where = match[1] if match else ""
    what = text[: match.start()] if match else text
    unknown = re.search(r"unknown field `([^`]+)`", what)
    if unknown:
        key = f"{where}.{unknown[1]}" if where else unknown[1]
        message, hint = f"unknown key {key!r}", _nearest(unknown[1], _known(where))
    else:
        key = where
        message, hint = f"{key or 'the file'}: {_in_words(what)}", _example(key)
    line = positions.lines.get(key)
    place = f"{path}, line {line}" if line else str(path)
    return ConfigError(f"{place}: {message}", hint)


def _short(error: Exception) -> str:
    """One short line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _in_words(what: str) -> str:
    """msgspec's message, with what a person is to write in place of a pattern."""
    if "matching regex" in what:
        return "expected an address that begins with http:// or https://"
    return what[0].lower() + what[1:]


def _example(key: str) -> str:
    section, _, name = key.partition(".")
    kind = SECTIONS.get(section)
    if kind is None or name not in kind.__struct_fields__:
        return _SHOWS_ALL
    default = json.dumps(getattr(kind(), name))
    choices = _choices(get_type_hints(kind)[name])
    allowed = f"Allowed: {', '.join(json.dumps(choice) for choice in choices)}. " if choices else ""
    return f"{allowed}The default is {default}; config.example.json shows every key."


def _choices(hint: object) -> tuple[object, ...]:
    """The values a setting may have, where it is a choice."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def parse(text: str, path: Path) -> Settings:
    """The settings in `text`; ConfigError with path, line, what was expected and the nearest name."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}",
            "JSON wants double quotes, no comments, and no comma after the last entry.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a configuration: {_short(error)}", _SHOWS_ALL) from error
    positions = find_positions(text)
    if positions.twice:
        key, line = positions.twice[0]
        raise ConfigError(f"{path}, line {line}: {key!r} is given twice", "Keep one of them.")
    try:
        settings = msgspec.json.decode(text, type=Settings)
    except msgspec.ValidationError as error:
        raise _explain(error, positions, path) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a configuration: {_short(error)}", _SHOWS_ALL) from error
    _check(settings, positions, path)
    return settings


def _check(settings: Settings, positions: Positions, path: Path) -> None:
    """What types cannot say."""

    def refuse(key: str, message: str, hint: str) -> None:
        line = positions.lines.get(key)
        place = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{place}: {key}: {message}", hint)

    server = settings.server
    for key, name in (
        ("database.file", settings.database.file), ("logging.file", settings.logging.file),
        ("server.token_file", server.token_file), ("server.ca_file", server.ca_file),
        ("node.name", settings.node.name), ("server.contract_number", server.contract_number),
    ):  # fmt: skip
        if isinstance(name, str) and not name.isprintable():
            refuse(key, "holds a character that cannot be printed", "Write it anew by hand.")
    if server.url is not None:
        problem = url_problem(server.url)
        if problem is not None:
            refuse("server.url", *problem)
        if server.contract_number in (None, ""):
            refuse(
                "server.url", "needs server.contract_number beside it", "The number stands in your contract."
            )
    if settings.database.raw_days > settings.database.aggregate_days:
        refuse(
            "database.raw_days",
            "is longer than database.aggregate_days",
            "Rows are rolled up before they go.",
        )


def url_problem(url: str) -> tuple[str, str] | None:
    """What is wrong with an address and what to do; None where nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is no address: {_short(error)}", "Write https://host:port/path."
    if "@" in parts.netloc:
        return "holds a user or password", "Put the secret into server.token_file."
    if not parts.hostname or port == 0:
        return "names no host, or port 0", "Write https://host:port/path."
    return None


def _refuse_clash(loaded: Loaded) -> Loaded:
    """ConfigError where the log would be written into the store or a file beside it."""
    name = loaded.settings.logging.file
    if name is not None:
        log, store = loaded.resolve(name).resolve(), loaded.store.resolve()
        if log in {store.with_name(store.name + end) for end in _COMPANIONS}:
            raise ConfigError(
                f"logging.file {log} is the store or one of its files", "Give the log a file of its own."
            )
    return loaded


def read_file(path: Path) -> Settings:
    """The settings of one file; ConfigError where it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file", "Give the path of a JSON file.")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {path}", "Copy config.example.json there, or leave --config out."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", "It must be UTF-8 text that this user may read."
        ) from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{path} is larger than {_LARGEST} bytes: no configuration of ours", _SHOWS_ALL)
    return parse(text, path)


def load(named: str | None = None, working: Path | None = None) -> Loaded:
    """The configuration named, or the first one found, or the defaults."""
    here = (working or Path.cwd()).absolute()
    base = state_directory(here)
    if named is not None:
        path = here / Path(named).expanduser()
        return _refuse_clash(Loaded(read_file(path), path, base))
    for path in search_path(here):
        if path.is_file():
            return _refuse_clash(Loaded(read_file(path), path, base))
    return Loaded(Settings(), None, base)


def read_token(loaded: Loaded) -> str | None:
    """The token from GPU_MONITOR_TOKEN or the token file, else, for a server on loopback, this user's own.

    None where there is none. ConfigError as `find_token`.
    """
    name = os.environ.get("GPU_MONITOR_TOKEN_FILE") or loaded.settings.server.token_file
    file = None if name is None else loaded.resolve(name)
    return find_token(os.environ.get("GPU_MONITOR_TOKEN"), file, loaded.settings.server.url)


def find_token(given: str | None, file: Path | None, url: str | None) -> str | None:
    """The token that is `given`, else that in `file`, else the one this user's server on loopback at `url` left.

    None where there is none.

    ConfigError where the file can be read by others, is missing, or holds no single printable word of
    8 characters or more.
    """
    if given:
        return _one_word(given, "GPU_MONITOR_TOKEN")
    if file is None:
        local = local_token_file()
        return None if url is None or local is None else local_token(local, url)
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the token file {file}: {error}", "Check server.token_file."
        ) from error
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    guarded = credentials is not None and file.is_relative_to(credentials)
    if sys.platform != "win32" and not guarded and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"the token file {file} can be read by other users", f"Run: chmod 600 {file}")
    return _one_word(text, str(file))


def _one_word(text: str, where: str) -> str:
    word = text.strip()
    if not word or not word.isascii() or not word.isprintable() or " " in word:
        raise ConfigError(
            f"the token in {where} is not one printable word", "Write the token alone on one line."
        )
    if len(word) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"the token in {where} has {len(word)} characters, fewer than {_SHORTEST_TOKEN}",
            "Ask whoever runs the server for a longer one; one so short can be guessed.",
        )
    return word


def environment(name: str) -> str | None:
    """A variable of the environment; None where it is unset or empty."""
    return os.environ.get(name) or None


def set_environment(name: str, value: str | None) -> None:
    """Set a variable for this process and its children; None takes it away."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def service_environment() -> dict[str, str]:
    """The variables by which a service manager says where it listens."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    return {name: os.environ[name] for name in names if name in os.environ}

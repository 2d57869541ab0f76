"""The server's settings: typed, frozen, from arguments, the environment and `.env`, in that order."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gpu_monitor.config.env_file import ENV_FILE, env_lines, env_pair
from gpu_monitor.config.load import environment, state_directory
from gpu_monitor.config.model import Level
from gpu_monitor.core.errors import ConfigError

Network = IPv4Network | IPv6Network
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SECRET = ("slack_webhook_url", "smtp_password", "database_url")
"""Settings whose values are never shown."""


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of `gpu_monitor serve`; each is the environment variable of its name in capitals."""

    host: Annotated[
        str, Meta(description="address to listen on; other than loopback needs TLS or a proxy, and an admin")
    ] = "localhost"
    port: Annotated[int, Meta(description="port to listen on; 0 takes a free one", ge=0, le=65535)] = 8000
    debug: Annotated[bool, Meta(description="tracebacks in answers, on loopback only; more in the log")] = (
        False
    )
    log_level: Annotated[Level, Meta(description="least level that is logged")] = "INFO"
    log_format: Annotated[
        str, Meta(description="text: lines for people; json: one JSON object a line", pattern="^(text|json)$")
    ] = "text"
    database_url: Annotated[
        str,
        Meta(
            description="sqlite:///FILE (relative to the server's directory) or postgresql://USER@HOST/NAME"
        ),
    ] = "sqlite:///gpu_monitor_server.db"
    metrics_retention_days: Annotated[
        Annotated[int, Meta(ge=1, le=36500)] | None,
        Meta(description="points of finished experiments are kept this long; unset keeps them"),
    ] = None
    blobs_directory: Annotated[
        str,
        Meta(
            description="files of experiments (relative to the server's directory); processes on one database share it"
        ),
    ] = "blobs"
    blobs_quota_gib: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(description="files of one contract come to this much at most; unset leaves it to the disk"),
    ] = None
    enable_notifications: Annotated[bool, Meta(description="send alerts out; without it they only show")] = (
        False
    )
    slack_webhook_url: Annotated[
        str | None, Meta(description="alerts go to this Slack webhook (https://hooks.slack.com/...)")
    ] = None
    email_notifications: Annotated[bool, Meta(description="alerts go out by mail, too")] = False
    smtp_host: Annotated[str | None, Meta(description="mail server")] = None
    smtp_port: Annotated[
        int, Meta(description="465 is TLS from the start, others STARTTLS", ge=1, le=65535)
    ] = 587
    smtp_user: Annotated[str | None, Meta(description="name at the mail server")] = None
    smtp_password: Annotated[str | None, Meta(description="password at the mail server")] = None
    smtp_from: Annotated[str | None, Meta(description="sender of mails")] = None
    smtp_to: Annotated[str | None, Meta(description="receivers of mails, with commas between")] = None
    notify_allow: Annotated[
        str | None,
        Meta(
            description="networks beside the open internet that notifications may go to, with commas between"
        ),
    ] = None
    rules_file: Annotated[
        str | None, Meta(description="TOML file with alert rules, taken over where it says something new")
    ] = None
    tls_cert: Annotated[str | None, Meta(description="PEM file with the certificate and its chain")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file with the certificate's key")] = None
    behind_proxy: Annotated[
        str | None,
        Meta(description="networks of the proxies whose forwarded headers count, with commas between"),
    ] = None
    allowed_hosts: Annotated[
        str | None,
        Meta(description="names the server answers to beside loopback and addresses, with commas between"),
    ] = None
    directory: Path = msgspec.field(default_factory=Path.cwd)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine's users may ask: bound elsewhere, or a proxy passes them on."""
        return not self.is_loopback or bool(self.proxies)

    @property
    def proxies(self) -> tuple[Network, ...]:
        """The networks of trusted proxies."""
        return tuple(ip_network(word, strict=False) for word in _words(self.behind_proxy))

    @property
    def notify_networks(self) -> tuple[Network, ...]:
        """The networks beside the open internet that notifications may go to."""
        return tuple(ip_network(word, strict=False) for word in _words(self.notify_allow))

    @property
    def names(self) -> frozenset[str]:
        """The host names from `allowed_hosts`, in small letters."""
        return frozenset(word.lower() for word in _words(self.allowed_hosts))

    @property
    def receivers(self) -> tuple[str, ...]:
        """The addresses that mails go to."""
        return tuple(_words(self.smtp_to))

    def __repr__(self) -> str:
        shown = (
            f"{name}={'***' if name in SECRET and value else repr(value)}"
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        )
        return f"ServerSettings({', '.join(shown)})"


NAMES: dict[str, str] = {
    field.upper(): field for field in ServerSettings.__struct_fields__ if field != "directory"
}
"""Every variable, and the setting it sets."""


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine alone."""
    return host.lower() in _LOOPBACK_NAMES or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def load_server(given: Mapping[str, object] | None = None, directory: Path | None = None) -> ServerSettings:
    """The server's settings: what is `given` (by field name), then the environment, `.env`, the defaults.

    `directory` holds `.env` and what relative paths start at: by default the service's state directory, else
    the working directory. ConfigError names the setting, its value, where it stood and what was expected.
    """
    base = (directory or state_directory(Path.cwd())).absolute()
    if not base.is_dir():
        raise ConfigError(f"there is no directory {base}", "Make it, or give another --directory.")
    chosen: dict[str, object] = {"directory": base}
    places: dict[str, str] = {}
    file = base / ENV_FILE
    for name, (value, line) in read_env_file(file).items():
        chosen[NAMES[name]], places[NAMES[name]] = value, f"{file}, line {line}: {name}"
    for name, field in NAMES.items():
        if (text := environment(name)) is not None:
            chosen[field], places[field] = text, f"the environment: {name}"
    _refuse_password((given or {}).get("database_url"))
    for field, argument in (given or {}).items():
        if argument is not None:
            chosen[field], places[field] = (
                argument,
                f"--{field.replace('_', '-').replace('database-url', 'database').replace('rules-file', 'rules')}",
            )
    settings = _typed(chosen, places)
    _check(settings, places)
    return settings


def _refuse_password(url: object) -> None:
    """ConfigError where a password stands on the command line, which every user of the machine can read."""
    if isinstance(url, str) and re.search(r"://[^/@]*:[^/@]+@|[?&](ssl)?password=", url):
        raise ConfigError(
            "--database holds a password, which the list of processes shows to everybody",
            "Put the address into DATABASE_URL (the environment or .env), or the password into PGPASSFILE.",
        )


def _typed(chosen: dict[str, object], places: dict[str, str]) -> ServerSettings:
    hints = get_type_hints(ServerSettings, include_extras=True)
    values: dict[str, Any] = {}
    for field, raw in chosen.items():
        if field == "directory":
            values[field] = raw
            continue
        try:
            values[field] = msgspec.convert(_plain(raw, hints[field]), hints[field], strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{places[field]}={_shown(field, raw)}: {_expected(hints[field])} was expected",
                f"The default is {_default(field)}; .env.example shows every setting.",
            ) from error
    return ServerSettings(**values)


def _plain(raw: object, hint: object) -> object:
    """What msgspec converts: yes and no are switches, too, and capitals do not matter in a level."""
    if not isinstance(raw, str):
        return raw
    kind = get_args(hint)[0]
    if kind is bool:
        return {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(raw.lower(), raw)
    return raw.upper() if get_origin(kind) is not None and kind == Level else raw


def _shown(field: str, raw: object) -> str:
    return "***" if field in SECRET else repr(raw)


def _default(field: str) -> str:
    value = getattr(ServerSettings(), field)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _expected(hint: Any) -> str:
    """What a setting may be, in words."""
    kind, *metas = get_args(hint)
    if kind is bool:
        return "true or false"
    if kind == Level:
        return ", ".join(get_args(kind))
    if any(meta.pattern for meta in metas):
        return "text or json"
    low, high = next(_bounds(hint), (None, None))
    return f"a whole number from {low} to {high}" if low is not None else "text"


def _bounds(hint: Any) -> Iterator[tuple[int, int]]:
    for part in get_args(hint):
        if isinstance(part, Meta) and part.ge is not None:
            yield int(part.ge), int(part.le or 0)
        yield from _bounds(part)


def _check(settings: ServerSettings, places: dict[str, str]) -> None:
    """What types cannot say."""

    def refuse(field: str, expected: str, hint: str) -> None:
        place = places.get(field, field.upper())
        raise ConfigError(f"{place}={_shown(field, getattr(settings, field))}: {expected}", hint)

    for field in NAMES.values():
        value = getattr(settings, field)
        if isinstance(value, str) and not value.isprintable():
            refuse(field, "holds a character that cannot be printed", "Write it anew by hand.")
    if not settings.host or any(letter in settings.host for letter in "/ @"):
        refuse("host", "a name or an address was expected", "HOST=localhost, or 0.0.0.0 for every address.")
    try:
        _ = settings.proxies
    except ValueError:
        refuse("behind_proxy", "networks were expected", "For example 10.0.0.0/8, or 127.0.0.1.")
    try:
        _ = settings.notify_networks
    except ValueError:
        refuse("notify_allow", "networks were expected", "For example 10.1.2.0/24, or 127.0.0.1.")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        missing = "tls_key" if settings.tls_cert else "tls_cert"
        refuse(missing, "certificate and key belong together", "Give --tls-cert and --tls-key.")
    for field in ("slack_webhook_url",):
        value = getattr(settings, field)
        if value is not None and urlsplit(value).scheme != "https":
            refuse(field, "an address with https:// was expected", "Slack shows it at Incoming Webhooks.")
    if settings.email_notifications and not (
        settings.smtp_host and settings.smtp_from and settings.receivers
    ):
        refuse(
            "email_notifications", "needs SMTP_HOST, SMTP_FROM and SMTP_TO", "Set them, or switch mails off."
        )


def read_env_file(path: Path) -> dict[str, tuple[str, int]]:
    """Our settings in a `.env`: name to value and line; nothing where there is no such file.

    Lines are as `config.env_file` takes them. Other programs' names are left alone; one that is nearly ours is
    refused (ConfigError), as is what cannot be read.
    """
    found: dict[str, tuple[str, int]] = {}
    for number, line in env_lines(path):
        pair = env_pair(line)
        if pair is None:
            raise ConfigError(
                f"{path}, line {number}: not NAME=value",
                "Quotes go around the whole value; # begins a comment.",
            )
        name, value = pair
        if name not in NAMES:
            close = difflib.get_close_matches(name.upper(), list(NAMES), n=1, cutoff=0.85)
            if close:
                raise ConfigError(
                    f"{path}, line {number}: unknown setting {name}", f"Did you mean {close[0]}?"
                )
        elif value:
            found[name] = (value, number)
    return found

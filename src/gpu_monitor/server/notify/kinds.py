"""The kinds of channels and their settings, and what of them may be shown."""

from __future__ import annotations

import difflib
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.rule import Severity

SECRET_BYTES = 16
"""A webhook's secret has at least so many characters: HMAC keys of 128 bits cannot be guessed."""
SCHEMES = (
    "discord", "gchat", "googlechat", "matrix", "matrixs", "mmost", "mmosts", "msteams", "workflow", "workflows",
    "ntfys", "opsgenie", "pagerduty", "pagertree", "pover", "rocket", "rockets", "signl4", "slack", "splunk",
    "tgram", "victorops", "webexteams", "wxteams", "zulip",
)  # fmt: skip
"""What apprise may be used for: chat and on-call services. Nothing that runs programs, writes files or asks at will."""
Url = Annotated[str, Meta(min_length=8, max_length=2000, pattern=r"^[!-~]+$")]
Address = Annotated[
    str, Meta(min_length=3, max_length=254, pattern=r"^[^\s@<>,;\x00-\x1f]+@[^\s@<>,;\x00-\x1f]+$")
]
Name = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[^\s/@\x00-\x1f]+$")]


class ChannelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every channel has: it is told of alerts at least as bad as `least`."""

    least: Severity = "info"


class SlackSpec(ChannelSpec, frozen=True, tag="slack", tag_field="kind", kw_only=True):
    """A Slack incoming webhook; its URL is the secret."""

    url: Url


class WebhookSpec(ChannelSpec, frozen=True, tag="webhook", tag_field="kind", kw_only=True):
    """A URL that takes signed JSON (see `webhook`)."""

    url: Url
    secret: Annotated[str, Meta(min_length=SECRET_BYTES, max_length=200)]


class EmailSpec(ChannelSpec, frozen=True, tag="email", tag_field="kind", kw_only=True):
    """Mails over SMTP: `tls` from the start (port 465), or STARTTLS."""

    host: Name
    port: Annotated[int, Meta(ge=1, le=65535)] = 587
    tls: bool | None = None
    user: Annotated[str, Meta(max_length=200)] | None = None
    password: Annotated[str, Meta(max_length=1000)] | None = None
    sender: Address
    to: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=50)]


class AppriseSpec(ChannelSpec, frozen=True, tag="apprise", tag_field="kind", kw_only=True):
    """Any service that apprise knows and SCHEMES allows; its URL holds the secrets. Addresses are not checked."""

    url: Url


AnyChannel = SlackSpec | WebhookSpec | EmailSpec | AppriseSpec
KINDS: tuple[str, ...] = ("slack", "webhook", "email", "apprise")
_decoder = msgspec.json.Decoder(AnyChannel)


def kind_name(spec: AnyChannel) -> str:
    """The name of its kind."""
    return str(spec.__struct_config__.tag)


def is_checked(spec: AnyChannel) -> bool:
    """Whether the addresses it connects to are checked."""
    return not isinstance(spec, AppriseSpec)


def host_of(spec: AnyChannel) -> str | None:
    """The host that it connects to, as it is written; None where addresses are not checked."""
    if isinstance(spec, EmailSpec):
        return spec.host
    return None if isinstance(spec, AppriseSpec) else urlsplit(spec.url).hostname


def read_channel(text: str) -> AnyChannel:
    """The settings in their JSON; UsageError where this program cannot read them."""
    try:
        found: AnyChannel = _decoder.decode(text)
        return found
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(str(error)) from None


def convert_channel(given: object) -> AnyChannel:
    """The settings in plain objects, checked; UsageError, which never holds a value, says what is wrong."""
    try:
        spec: AnyChannel = msgspec.convert(given, AnyChannel)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(str(error)) from None
    if isinstance(spec, (SlackSpec, WebhookSpec)):
        _check_http(spec.url)
    if isinstance(spec, AppriseSpec):
        _check_apprise(spec.url)
    if isinstance(spec, EmailSpec) and (spec.user is None) != (spec.password is None):
        raise UsageError("user and password belong together")
    return spec


def _check_http(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fit = False
    if not is_fit or parts.username is not None or parts.fragment:
        raise UsageError(
            "url: an address with https:// was expected, without user and fragment",
            "http:// only works within NOTIFY_ALLOW.",
        )


def _check_apprise(url: str) -> None:
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, 1)
        hint = f"Did you mean {near[0]}://?" if near else f"Known: {', '.join(SCHEMES)}."
        raise UsageError(f"url: {scheme[:20]}:// is not among the services that are allowed", hint)


def shown(spec: AnyChannel) -> dict[str, Any]:
    """The settings as answers show them: every secret is ***, and so is the whole path of a URL."""
    whole: dict[str, Any] = msgspec.to_builtins(spec)
    whole.pop("kind")
    if isinstance(spec, AppriseSpec):
        whole["url"] = f"{spec.url.partition('://')[0]}://***"
    elif isinstance(spec, (SlackSpec, WebhookSpec)):
        parts = urlsplit(spec.url)
        whole["url"] = f"{parts.scheme}://{parts.netloc}/***"
    for name in ("secret", "password"):
        if whole.get(name) is not None:
            whole[name] = "***"
    return whole

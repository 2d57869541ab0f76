# SPDX-License-Identifier: MIT
"""Takes secrets out of what is recorded of a run: command lines, diffs, variables, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

MASK = "***"
_NONE = re.RegexFlag(0)


class _Pattern:
    """An expression, compiled when a text comes that could match: all of them would take 4 ms of a run's start.

    `hints`: pieces in small letters, one of which is in whatever matches; none: anything could.
    """

    def __init__(self, text: str, *hints: str, flags: re.RegexFlag = _NONE) -> None:
        self._text, self._hints, self._flags = text, hints, flags
        self._compiled: re.Pattern[str] | None = None

    def _find(self, text: str) -> re.Pattern[str] | None:
        if self._hints:
            # As an expression that ignores case does: to it, a Kelvin sign is a k.
            folded = text.casefold()
            if not any(hint in folded for hint in self._hints):
                return None
        if self._compiled is None:
            self._compiled = re.compile(self._text, self._flags)
        return self._compiled

    def sub(self, by: str | Callable[[re.Match[str]], str], text: str) -> str:
        found = self._find(text)
        return text if found is None else found.sub(by, text)

    def search(self, text: str) -> re.Match[str] | None:
        found = self._find(text)
        return None if found is None else found.search(text)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        found = self._find(text)
        return None if found is None else found.fullmatch(text)


_SECRETS = ("key", "token", "pass", "pwd", "secret", "cred")
"""Hints of every name below."""
_STRONG = (
    r"(?:api|access|private|auth|secret|signing|encryption|account)[_.-]?key"
    r"|passwd|password|passphrase|pwd|secret|credentials?"
)
"""What ends names whose values are secrets whatever they look like."""
_NAME = rf"[A-Za-z0-9_.-]*(?:{_STRONG}|key|token)"
"""Also `pad_token` and `sort_key`: in source text, their values must look like secrets."""
_ENDS_STRONG = _Pattern(rf"(?:{_STRONG})\Z", *_SECRETS, flags=re.IGNORECASE)
_LOOKS_SECRET = _Pattern(r"(?=[^\n]*[0-9])(?=[^\n]*[A-Za-z])[A-Za-z0-9+/_=.~:-]{12,}\Z")

_OPTION = _Pattern(rf"-{{1,2}}{_NAME}", *_SECRETS, flags=re.IGNORECASE)
_SETTING = _Pattern(rf"\+*(?:-{{1,2}})?{_NAME}", *_SECRETS, flags=re.IGNORECASE)
"""`--token`, and as programs with settings of their own take them: `model.api_key=…`, `+hub.token=…`."""
_OPTION_TEXT = _Pattern(
    rf"(?<![\w-])(--{_NAME})(=|[ \t]+)(\"[^\"\n]*\"|'[^'\n]*'|[^\s'\"-][^\s'\"]*)",
    *_SECRETS,
    flags=re.IGNORECASE,
)
_QUOTED = _Pattern(
    rf"((?<![A-Za-z0-9_.-])({_NAME})[\"']?\]?\s*(?::=|[:=])\s*[rbuf]{{0,2}}[\"'])([^\"'\n]+)(?=[\"'])",
    *_SECRETS,
    flags=re.IGNORECASE,
)
_VARIABLE = _Pattern(
    rf"((?<![A-Za-z0-9_.-])({_NAME})[ \t]*[:=][ \t]*)([^\s\"'(),;&\[\]{{}}]+)(?![^\s\"',;&)}}\]])",
    *_SECRETS,
    flags=re.IGNORECASE,
)
_TYPE_OR_NOTHING = _Pattern(r"[A-Z][A-Za-z]*\Z|str|bytes|int|bool|object|null|true|false")
_BEARER = _Pattern(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9+/_=.~-]{8,}", "bearer", "bas", flags=re.IGNORECASE)
_ADDRESS = _Pattern(r"([A-Za-z][A-Za-z0-9+.-]{1,30}://)([^\s/'\"<>]+)@", "://")
_REMOTE_SHELLS = ("ssh://", "git+ssh://", "git://", "rsync://", "sftp://")
_PRIVATE_KEY = _Pattern(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    "-----begin ",
    flags=re.DOTALL,
)
_KNOWN = _Pattern(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and others who took the form over
    r"|[rsp]k_(?:live|test)_[A-Za-z0-9]{10,}"  # Stripe
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"  # GitHub
    r"|glpat-[A-Za-z0-9_-]{16,}"  # GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"  # AWS access key ids
    r"|AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,}"  # Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|pypi-[A-Za-z0-9_-]{40,}|npm_[A-Za-z0-9]{30,}"  # package registries
    r"|nvapi-[A-Za-z0-9_-]{20,}"  # NVIDIA
    r"|wandb_v[0-9]_[A-Za-z0-9_]{20,}"  # Weights & Biases, the newer form
    r"|gpm_[A-Za-z0-9_-]{20,}"  # ours
    r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"  # JSON web tokens
    r")"
)
# 40 hexadecimal digits are a commit as well: only behind a word that says what they are.
_HEX_KEY = _Pattern(
    r"((?:wandb|comet|neptune|api|login|token|key|secret)[^\n]{0,40}?)(?<![0-9A-Fa-f])[0-9a-f]{40}(?![0-9A-Fa-f])",
    flags=re.IGNORECASE,
)


def mask_text(text: str) -> str:
    """`text` without the secrets that can be told from their form or from the name before them.

    For diffs, messages and single values. What looks like source text keeps values that are plainly no secrets
    (`pad_token = "<pad>"`, `token=None`).
    """
    text = _PRIVATE_KEY.sub(rf"\1{MASK}\2", text)
    text = _ADDRESS.sub(_masked_address, text)
    text = _KNOWN.sub(MASK, text)
    text = _HEX_KEY.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    text = _OPTION_TEXT.sub(rf"\1\2{MASK}", text)
    text = _QUOTED.sub(_masked_if_secret, text)
    return _VARIABLE.sub(_masked_if_secret, text)


def _masked_address(found: re.Match[str]) -> str:
    """The user of `https://user:password@host` stays; a user alone may be a token, but for a shell's."""
    user, colon, _ = found[2].partition(":")
    if not colon and found[1].lower() in _REMOTE_SHELLS:
        return found[0]
    return f"{found[1]}{user if colon and not _KNOWN.search(user) else ''}{colon}{MASK}@"


def _masked_if_secret(found: re.Match[str]) -> str:
    """A name and its value, which is masked where the name is a secret's or the value looks like one."""
    before, name, value = found[1], found[2], found[3]
    is_quoted = before[-1] in "\"'"
    is_strong = _ENDS_STRONG.search(name) is not None
    is_secret = _LOOKS_SECRET.fullmatch(value) is not None
    if not is_quoted:
        # `password = settings.password`, `token=None`, `secret: str`: what source text looks up is no secret.
        is_looked_up = all(part.isidentifier() for part in value.split("."))
        is_secret = is_secret and not ("." in value and is_looked_up)
    if is_strong and not is_secret:
        is_setting = before.rstrip()[-1:] == ":" and not _TYPE_OR_NOTHING.fullmatch(value)
        has_digit = any(letter.isdigit() for letter in value)
        is_secret = is_quoted or has_digit or not is_looked_up or is_setting or name.isupper()
    return f"{before}{MASK}" if is_secret else found[0]


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without the values of options that end in token, key, password, secret or the like.

    `--token x`, `--token=x`, `model.api_key=x`; and what `mask_text` finds in the others.
    """
    masked, is_value = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_value and not argument.startswith("--"):
            masked.append(MASK)
            is_value = False
        elif equals and _SETTING.fullmatch(name):
            masked.append(f"{name}={MASK}")
            is_value = False
        else:
            masked.append(mask_text(argument))
            is_value = _OPTION.fullmatch(argument) is not None
    return masked

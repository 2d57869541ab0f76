"""Tokens that servers gave to the nodes of a store: kept in a file beside it, and which token a request shows.

A node that enrols is given a token of its own with its first answer. From its first use on the server wants it,
so it is on disk before it is used. The file holds, for each server, the token of each node that reports there
(imported nodes have their own); only its owner may read it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from gpu_monitor.core.errors import ConfigError

_LOG = logging.getLogger("tokens")
_LARGEST = 1 << 20
"""Bytes of the file; a token takes some 250."""
_SHORTEST, _LONGEST = 8, 512
"""Characters of a token: as short as a configured one may be, as long as a header of one may sensibly get."""


class Given(msgspec.Struct, frozen=True):
    """A node's token. `shown`: SHA-256 of the configured token that it goes before; another one is tried first."""

    token: str
    shown: str = ""


_Held = dict[str, dict[str, Given]]
"""By server and node."""


def token_path(store: Path) -> Path:
    """The file beside the store."""
    return store.with_name(store.name + ".token.json")


class NodeTokens:
    """The file of tokens. Any thread; one process, which holds the store's agent lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._held = _read(path)

    def held(self, server: str, node: str) -> Given | None:
        """The token that `server` gave `node`; None where there is none."""
        return self._held.get(server, {}).get(node)

    def held_for(self, server: str) -> Given | None:
        """Any token that `server` gave; None where there is none."""
        return next(iter(self._held.get(server, {}).values()), None)

    def keep(self, server: str, node: str, token: str, shown: str | None) -> bool:
        """Keep a token that was given to whoever shows `shown`; False where it cannot be kept, nor used then."""
        given = Given(token, digest_of(shown))
        return self.held(server, node) == given or self._change(server, node, given)

    def forget(self, server: str, node: str) -> None:
        """Drop a token that the server does not know any more."""
        self._change(server, node, None)

    def retain(self, nodes: Collection[str]) -> None:
        """Drop the tokens of all other nodes: of whoever this disk was copied from, or was before."""
        with self._lock:
            kept = {
                server: {node: given for node, given in of_server.items() if node in nodes}
                for server, of_server in self._held.items()
            }
            dropped = {node for of_server in self._held.values() for node in of_server} - set(nodes)
            if not dropped:
                return
            self._held = {server: of_server for server, of_server in kept.items() if of_server}
            if self._write(self._held):
                _LOG.info("dropped the tokens of nodes that do not report from here: %s", sorted(dropped))

    def _change(self, server: str, node: str, given: Given | None) -> bool:
        with self._lock:
            of_server = {name: one for name, one in self._held.get(server, {}).items() if name != node}
            if given is not None:
                of_server[node] = given
            changed = {**self._held, server: of_server}
            # One that would be lost with this process must not be used: the server would want it ever after.
            if not self._write(changed) and given is not None:
                return False
            self._held = changed
            return True

    def _write(self, held: _Held) -> bool:
        new = self.path.with_name(self.path.name + ".new")
        try:
            new.unlink(missing_ok=True)
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(held)) + b"\n")
                file.flush()
                os.fsync(handle)
            new.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            _LOG.warning(
                "cannot write %s (%s): a token that the server gives this node is not used; correct the folder's"
                " owner, mode and space", self.path, error.strerror,
            )  # fmt: skip
            return False
        return True


def _read(path: Path) -> _Held:
    """What the file holds; nothing (said in the log) where it is not a plain file of ours."""
    # Without O_NONBLOCK a named pipe in its place would stop the agent at start.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        return {}
    except OSError as error:
        _LOG.warning("cannot read %s: %s; the configured token is shown", path, error.strerror)
        return {}
    try:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 and sys.platform != "win32":
            _LOG.warning("%s could be read by other users: it is made its owner's alone", path)
            os.fchmod(handle, 0o600)
        data = os.read(handle, _LARGEST) if stat.S_ISREG(found.st_mode) else b""
        return msgspec.json.decode(data, type=_Held)
    except OSError as error:
        _LOG.warning("cannot read %s: %s; the configured token is shown", path, error.strerror)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        _LOG.warning("%s does not hold tokens of nodes; the configured token is shown", path)
    finally:
        os.close(handle)
    return {}


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; Windows cannot open a folder and does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(token: str | None) -> str:
    """What is kept of a configured token: enough to see that it was changed."""
    return "" if token is None else hashlib.sha256(token.encode()).hexdigest()


def server_of(url: str) -> str:
    """The server a URL leads to: a token goes to the one that gave it and to no other."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it cannot be used, which the first request says
        return url
    return f"{parts.scheme}://{parts.netloc}"


class Keyring:
    """Which tokens requests to one server show, first choice first. One thread."""

    def __init__(self, url: str, configured: Callable[[], str | None], given: NodeTokens | None) -> None:
        self._server, self._configured, self._given = server_of(url), configured, given

    def choices(self, node: str | None) -> list[str | None]:
        """What to show for reports of `node` (None: of none in particular), at least one (None: no token).

        A node's own token, but a configured one that was changed since goes before it. ConfigError where the
        configured one cannot be read and there is no other.
        """
        given = self._held(node)
        if given is None:
            return [self._configured()]
        try:
            configured = self._configured()
        except ConfigError:
            return [given.token]  # the node does not need the enrolling token any more: it may be gone
        if configured is None or configured == given.token:
            return [given.token]
        own_first = digest_of(configured) == given.shown
        return [given.token, configured] if own_first else [configured, given.token]

    def own(self, node: str) -> str | None:
        """The node's own token; None where it has none."""
        given = None if self._given is None else self._given.held(self._server, node)
        return None if given is None else given.token

    def keep(self, node: str, answer: object, shown: str | None) -> str | None:
        """Keep the `node_token` of an answer to whoever showed `shown`; the token, where it was one."""
        if self._given is None or not isinstance(answer, str) or not _is_token(answer):
            return None
        if self._given.keep(self._server, node, answer, shown):
            _LOG.info("the server gave node %s a token of its own; it is kept in %s", node, self._given.path)
        return answer

    def refused(self, node: str | None, token: str | None, status: int) -> None:
        """The server refused a request with `token`; say so where it is the node's own."""
        if node is None or token is None or token != self.own(node) or status != 401:
            return
        _LOG.warning(
            "the server takes the own token of node %s no more (HTTP 401: revoked, expired, or the server's database is"
            " an older copy); the configured one is tried. If that is refused, too: gpu_monitor token create --contract"
            " NUMBER --enrol on the server, and put what it prints into server.token_file", node,
        )  # fmt: skip

    def settled(self, node: str | None, tried: Sequence[tuple[str | None, int]]) -> None:
        """After refusals the last of `tried` (token and status) was accepted: which one goes first from now on."""
        own = None if node is None else self.own(node)
        if own is None or node is None or self._given is None:
            return
        accepted = tried[-1][0]
        if accepted == own:
            _LOG.warning("the configured token is refused for node %s; its own one is used on", node)
            self._given.keep(self._server, node, own, tried[0][0])
        elif (own, 401) in tried:
            self._given.forget(self._server, node)
        else:
            self._given.keep(self._server, node, own, None)

    def _held(self, node: str | None) -> Given | None:
        if self._given is None:
            return None
        if node is not None:
            return self._given.held(self._server, node)
        try:
            self._configured()
        except ConfigError:
            return self._given.held_for(self._server)
        return None


def _is_token(text: str) -> bool:
    is_word = text.isascii() and text.isprintable() and " " not in text
    return is_word and _SHORTEST <= len(text) <= _LONGEST

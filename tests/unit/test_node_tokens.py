"""The file of the tokens that servers gave: on disk before it counts, its owner's alone, and which one is shown."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from gpu_monitor.core.errors import ConfigError
from gpu_monitor.sinks.tokens import Keyring, NodeTokens, token_path

URL = "https://fleet.example:8443/api/metrics"
SERVER = "https://fleet.example:8443"
ENROL, ROTATED, OWN, OTHER = "enrol-0001", "enrol-0002", "own-00000001", "own-00000002"


def test_a_token_outlives_the_process_for_its_owner_alone(tmp_path: Path) -> None:
    path = token_path(tmp_path / "s.db")
    assert path == tmp_path / "s.db.token.json"
    old = os.umask(0)
    try:
        assert NodeTokens(path).keep(SERVER, "a", OWN, ENROL)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = NodeTokens(path).held(SERVER, "a")
    assert again is not None
    assert again.token == OWN
    assert ENROL not in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["s.db.token.json"]


def test_a_token_that_cannot_be_kept_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = NodeTokens(tmp_path / "gone" / "s.db.token.json")
    assert not tokens.keep(SERVER, "a", OWN, ENROL)
    assert tokens.held(SERVER, "a") is None
    assert "cannot write" in caplog.text
    assert OWN not in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"https://x": {"a": {"token": 3}}}', b"\xff\x00" * 9]
)
def test_a_file_that_is_none_of_ours_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.db.token.json"
    path.write_bytes(content)
    tokens = NodeTokens(path)
    assert tokens.held(SERVER, "a") is None
    assert tokens.keep(SERVER, "a", OWN, ENROL)
    assert NodeTokens(path).held(SERVER, "a") == tokens.held(SERVER, "a")


def test_a_file_that_others_may_read_is_closed_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db.token.json"
    NodeTokens(path).keep(SERVER, "a", OWN, ENROL)
    path.chmod(0o644)
    assert NodeTokens(path).held(SERVER, "a") is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "could be read by other users" in caplog.text


def test_a_pipe_or_link_in_its_place_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert NodeTokens(tmp_path / "pipe").held(SERVER, "a") is None
    NodeTokens(tmp_path / "real").keep(SERVER, "a", OWN, ENROL)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert NodeTokens(tmp_path / "link").held(SERVER, "a") is None


def test_tokens_of_nodes_that_do_not_report_from_here_go(tmp_path: Path) -> None:
    path = tmp_path / "s.db.token.json"
    tokens = NodeTokens(path)
    for node, token in (("a", OWN), ("b", OTHER)):
        tokens.keep(SERVER, node, token, ENROL)
    tokens.retain({"b", "c"})
    again = NodeTokens(path)
    assert again.held(SERVER, "a") is None
    held = again.held(SERVER, "b")
    assert held is not None
    assert held.token == OTHER


class Configured:
    """The token in the configuration; None: it cannot be read."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self) -> str:
        if self.token is None:
            raise ConfigError("cannot read the token file", "Check server.token_file.")
        return self.token


def test_the_own_token_goes_first_until_the_configured_one_is_changed(tmp_path: Path) -> None:
    configured = Configured(ENROL)
    keys = Keyring(URL, configured, NodeTokens(tmp_path / "t"))
    assert keys.choices("a") == [ENROL]
    keys.keep("a", OWN, ENROL)
    assert keys.choices("a") == [OWN, ENROL]
    assert keys.choices("b") == [ENROL]
    configured.token = ROTATED
    assert keys.choices("a") == [ROTATED, OWN]
    # It was refused (the node has a token of its own): no need to try it first every time.
    keys.settled("a", [(ROTATED, 403), (OWN, 200)])
    assert keys.choices("a") == [OWN, ROTATED]
    configured.token = None
    assert keys.choices("a") == [OWN]
    assert keys.choices(None) == [OWN]
    with pytest.raises(ConfigError):
        keys.choices("b")


def test_a_token_that_the_server_takes_no_more_is_dropped_once_another_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = Keyring(URL, Configured(ENROL), NodeTokens(tmp_path / "t"))
    keys.keep("a", OWN, ENROL)
    keys.refused("a", OWN, 401)
    assert keys.choices("a") == [OWN, ENROL]
    assert "token create --contract NUMBER --enrol" in caplog.text
    keys.settled("a", [(OWN, 401), (ENROL, 200)])
    assert keys.choices("a") == [ENROL]
    keys.keep("a", OTHER, ENROL)
    keys.settled("a", [(OTHER, 403), (ENROL, 200)])
    assert keys.choices("a") == [ENROL, OTHER]
    assert not any(secret in caplog.text for secret in (ENROL, OWN, OTHER))


def test_a_token_goes_to_the_server_that_gave_it_and_no_other(tmp_path: Path) -> None:
    tokens = NodeTokens(tmp_path / "t")
    Keyring(URL, Configured(ENROL), tokens).keep("a", OWN, ENROL)
    for other in ("https://fleet.example/api/metrics", "http://fleet.example:8443/api/metrics"):
        assert Keyring(other, Configured(ENROL), tokens).choices("a") == [ENROL]
    assert Keyring(SERVER + "/elsewhere", Configured(ENROL), tokens).choices("a") == [OWN, ENROL]


@pytest.mark.parametrize(
    "answer", [None, 7, "", "short", "two words!", "line\nbreak-0001", "ü" * 20, "x" * 600]
)
def test_what_is_no_token_is_not_kept(tmp_path: Path, answer: object) -> None:
    keys = Keyring(URL, Configured(ENROL), NodeTokens(tmp_path / "t"))
    assert keys.keep("a", answer, ENROL) is None
    assert keys.choices("a") == [ENROL]

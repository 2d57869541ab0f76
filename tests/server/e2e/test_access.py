"""Who may: tokens, users, sessions and their limits, asked of a real server over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.server.auth.tokens import Grant, create_token
from gpu_monitor.server.store.engine import Store
from tests.e2e.program import ask
from tests.e2e.waiting import until
from tests.server.rig import Server, serving

PASSWORD = "correct horse battery"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite of one's own; what differs by database is asked in test_access_books, too."""
    with serving(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for those who are in nobody's way: they make tokens, no users, and look at what is theirs."""
    with serving(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def either(tmp_path: Path, database: str) -> Iterator[Server]:
    """A server on each of the databases."""
    with serving(tmp_path, database=database) as running:
        yield running


def typed_user(server: Server, name: str, *words: str) -> None:
    """A user made by the command."""
    made = server.command_with(f"{PASSWORD}\n", "user", "add", name, *words)
    assert made.returncode == 0, made.stderr


def login(server: Server, name: str, password: str = PASSWORD) -> tuple[dict[str, str], dict[str, object]]:
    """The headers of a session (cookie and the word for changes), and who it is."""
    answer = server.ask("POST", "/api/session", {"name": name, "password": password})
    assert answer.status == 200, answer.body
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"Cookie": cookie, "X-CSRF-Token": answer.json["csrf"]}, answer.json


def test_reading_is_open_on_loopback_and_writing_is_not(shared: Server) -> None:
    server = shared
    me = server.ask("GET", "/api/session")
    assert (me.status, me.json["kind"], me.json["scopes"]) == (200, "anonymous", ["read"])
    refused = server.ask("POST", "/api/tokens", {"contract_number": "12345"})
    assert refused.status == 403
    assert server.ask("GET", "/api/users").status == 401
    assert server.ask("GET", "/api/users").headers["www-authenticate"] == "Bearer"


def test_a_new_token_counts_at_once_and_a_revoked_one_no_more_within_seconds(either: Server) -> None:
    server = either
    token = server.typed_token("--scope", "admin", "--name", "ops")
    listed = server.ask("GET", "/api/tokens", token=token)
    assert listed.status == 200
    mine = next(one for one in listed.json["items"] if one["name"] == "ops")
    assert (mine["scopes"], mine["contract_number"], mine["revoked"]) == (["admin"], None, None)
    assert server.command("token", "revoke", mine["id"]).returncode == 0
    until(lambda: server.ask("GET", "/api/tokens", token=token).status == 401, "the token is refused", 5)
    assert server.command("token", "revoke", mine["id"]).returncode == 3


def test_what_a_token_may_is_what_it_was_made_for(shared: Server) -> None:
    server = shared
    writer = server.typed_token("--contract", "12345")
    assert server.ask("GET", "/api/session", token=writer).status == 403
    reader = server.typed_token("--scope", "read", "--contract", "12345")
    me = server.ask("GET", "/api/session", token=reader).json
    assert (me["scopes"], me["contracts"]) == (["read"], ["12345"])
    assert server.ask("GET", "/api/users", token=reader).status == 403


@pytest.mark.parametrize(
    "header",
    [
        "Bearer gpm_" + "A" * 43,
        "Bearer x",
        "Bearer ",
        "Basic YTpi",
        "Bearer gpm_" + "é" * 43,
        "gpm_" + "A" * 43,
    ],
)
def test_an_unknown_token_is_refused_and_never_repeated(shared: Server, header: str) -> None:
    answer = shared.ask(
        "GET", "/api/session", headers={"Authorization": header.encode("latin-1").decode("latin-1")}
    )
    assert answer.status == 401
    assert b"gpm_" not in answer.body


def test_an_expired_token_is_refused(shared: Server) -> None:
    server = shared
    made = server.command("token", "create", "--scope", "read", "--expires", "3s")
    token = made.stdout.strip()
    until(lambda: server.ask("GET", "/api/session", token=token).status == 401, "it expires", 20)
    listed = server.command("token", "list")
    assert "expired" in listed.stdout


def test_tokens_are_listed_in_the_order_of_their_making_with_their_end(
    store: Store, database: str, tmp_path: Path
) -> None:
    day, now = 86_400.0, 1_710_945_000.0  # 2024-03-20T14:30:00Z
    with store.write() as connection:
        for number in (3, 1, 2):
            grant = Grant(
                frozenset(("read",)), name=f"number-{number}", expires=now + 90 * day if number == 2 else None
            )
            create_token(connection, grant, now + number)
    listed = ask(tmp_path, "token", "list", DATABASE_URL=database)
    head, *rows = listed.stdout.splitlines()
    assert head.split()[-4:] == ["CREATED", "EXPIRES", "LAST", "USED"]
    assert [re.findall(r"number-\d", row)[0] for row in rows] == ["number-1", "number-2", "number-3"]
    assert [row.split()[-2] for row in rows] == ["never", "2024-06-18T14:30:00+00:00", "never"]
    told = json.loads(ask(tmp_path, "token", "list", "--json", DATABASE_URL=database).stdout)
    assert [one["name"] for one in told] == ["number-1", "number-2", "number-3"]


def test_tokens_made_over_http_reach_no_further_than_who_makes_them(either: Server) -> None:
    server = either
    server.user("ada", PASSWORD, ("12345", "admin", ""))
    session, _ = login(server, "ada")
    made = server.ask("POST", "/api/tokens", {"contract_number": "12345", "enrol": True}, headers=session)
    assert made.status == 201, made.body
    assert len(made.json["token"]) == 47
    for beyond in (
        {"contract_number": "99"},
        {"contract_number": None, "scopes": ["read"]},
        {"contract_number": "12345", "scopes": ["admin"]},
    ):
        assert server.ask("POST", "/api/tokens", beyond, headers=session).status == 403, beyond
    wrong = {"contract_number": "12345", "scopes": ["read"], "enrol": True}
    assert server.ask("POST", "/api/tokens", wrong, headers=session).status == 422
    other = server.token("--contract", "777")
    theirs = json.loads(server.command("token", "list", "--json").stdout)
    foreign = next(one["id"] for one in theirs if one["contract_number"] == "777")
    assert server.ask("DELETE", f"/api/tokens/{foreign}", headers=session).status == 404
    shown = server.ask("GET", "/api/tokens", headers=session).json["items"]
    assert [one["contract_number"] for one in shown] == ["12345"]
    assert server.ask("DELETE", f"/api/tokens/{made.json['id']}", headers=session).status == 204
    assert server.ask("GET", "/api/session", token=made.json["token"]).status == 401
    assert other not in server.said


def test_what_no_database_could_hold_is_refused_and_not_our_mistake(either: Server) -> None:
    token = either.token("--scope", "admin", "--scope", "read")
    for method, path, body in (
        ("POST", "/api/session", {"name": "ada\0", "password": PASSWORD}),
        ("POST", "/api/session", b'{"name": "\\ud800", "password": "correct horse battery"}'),
        ("POST", "/api/session", b"[" * 100_000),
        ("POST", "/api/session", b"\xff\xfe"),
        ("POST", "/api/session", {"name": "x" * 100_000, "password": PASSWORD}),
        ("POST", "/api/users", {"name": "a\n", "password": PASSWORD}),
        ("POST", "/api/users", {"name": "ada", "password": "x" * 100_000}),
        ("POST", "/api/tokens", {"contract_number": "1\0"}),
        ("POST", "/api/tokens", {"scopes": ["everything"]}),
        ("GET", "/api/tokens?cursor=%00", None),
        ("GET", "/api/audit?cursor=99999999999999999999", None),
        ("DELETE", "/api/tokens/%00", None),
        ("PATCH", "/api/users/ada%00", {"admin": True}),
    ):
        answer = either.ask(method, path, body, token=token)
        assert answer.status in (400, 404, 422), (method, path, answer.status, answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in either.said


def test_a_session_from_login_to_logout(server: Server) -> None:
    server.user("ada", PASSWORD, is_admin=True)
    answer = server.ask("POST", "/api/session", {"name": "ada", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    session, me = login(server, "ada")
    assert (me["kind"], me["name"], me["scopes"]) == ("session", "ada", ["admin", "read"])
    assert server.ask("GET", "/api/users", headers=session).status == 200
    cookie_alone = {"Cookie": session["Cookie"]}
    forged = server.ask("POST", "/api/users", {"name": "eve", "password": PASSWORD}, headers=cookie_alone)
    assert forged.status == 403
    assert server.ask("DELETE", "/api/session", headers=session).status == 204
    assert server.ask("GET", "/api/users", headers=session).status == 401


def test_answers_to_wrong_names_and_passwords_are_the_same_and_then_slow(server: Server) -> None:
    server.user("ada", PASSWORD)
    server.user("carl", PASSWORD)
    assert server.command("user", "disable", "carl").returncode == 0
    answers = [
        server.ask("POST", "/api/session", {"name": name, "password": password})
        for name, password in (("ada", "wrong password"), ("nobody", PASSWORD), ("carl", PASSWORD))
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    statuses = [
        server.ask("POST", "/api/session", {"name": "nobody", "password": "x" * 12}).status for _ in range(6)
    ]
    assert statuses[:4] == [401] * 4
    assert statuses[-1] == 429
    # Another account from the same address goes on.
    login(server, "ada")


def test_a_user_sees_the_contracts_granted_and_no_more_once_disabled(either: Server) -> None:
    server = either
    typed_user(server, "carl")
    session, me = login(server, "carl")
    assert (me["contracts"], me["roles"]) == ([], [])
    granted = server.command("user", "grant", "carl", "--contract", "nolab", "--role", "viewer")
    assert (granted.returncode, "no node reports under contract nolab yet" in granted.stderr) == (0, True)
    assert server.command("user", "grant", "carl", "--contract", "nolab", "--role", "none").returncode == 0
    assert server.command("user", "grant", "carl", "--contract", "12345", "--role", "viewer").returncode == 0
    assert (
        server.command(
            "user", "grant", "carl", "--contract", "777", "--project", "vision", "--role", "member"
        ).returncode
        == 0
    )

    def contracts() -> object:
        return server.ask("GET", "/api/session", headers=session).json["contracts"]

    until(lambda: contracts() == ["12345"], "the grant is heeded", 5)
    roles = server.ask("GET", "/api/session", headers=session).json["roles"]
    assert {"contract_number": "777", "project": "vision", "role": "member"} in roles
    assert server.command("user", "disable", "carl").returncode == 0
    until(
        lambda: server.ask("GET", "/api/session", headers=session).json["kind"] == "anonymous",
        "the session ends",
        5,
    )


def test_a_user_who_is_removed_is_let_in_no_more(either: Server) -> None:
    server = either
    server.user("dora", PASSWORD, ("12345", "viewer", ""))
    session, _ = login(server, "dora")
    asked = server.command("user", "remove", "dora")
    assert asked.returncode == 2
    assert "User dora (may: viewer of 12345) will be removed" in asked.stderr
    gone = server.command("user", "remove", "dora", "--yes")
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, "user dora was removed\n", "")
    until(
        lambda: server.ask("GET", "/api/session", headers=session).json["kind"] == "anonymous",
        "the session ends",
        5,
    )
    assert server.ask("POST", "/api/session", {"name": "dora", "password": PASSWORD}).status == 401
    assert "dora" not in server.command("user", "list").stdout
    assert server.command("user", "remove", "dora", "--yes").returncode == 3
    typed_user(server, "dora")  # the name is free again, without the roles of before
    (dora,) = [
        one for one in json.loads(server.command("user", "list", "--json").stdout) if one["name"] == "dora"
    ]
    assert dora["memberships"] == []


def test_changing_ones_password_ends_the_sessions(server: Server) -> None:
    server.user("ada", PASSWORD)
    session, _ = login(server, "ada")
    path = "/api/session/password"
    assert (
        server.ask("POST", path, {"old": "wrong password", "new": "another long one"}, headers=session).status
        == 403
    )
    assert server.ask("POST", path, {"old": PASSWORD, "new": "short"}, headers=session).status == 422
    assert (
        server.ask("POST", path, {"old": PASSWORD, "new": "another long one"}, headers=session).status == 204
    )
    assert server.ask("GET", "/api/session", headers=session).json["kind"] == "anonymous"
    login(server, "ada", "another long one")


def test_the_last_administrator_stays(server: Server) -> None:
    typed_user(server, "ada", "--admin")
    assert server.command("user", "disable", "ada").returncode == 2
    assert server.command("user", "remove", "ada", "--yes").returncode == 2
    session, _ = login(server, "ada")
    assert server.ask("PATCH", "/api/users/ada", {"admin": False}, headers=session).status == 422
    assert server.ask("PATCH", "/api/users/nobody", {"admin": False}, headers=session).status == 404
    made = server.ask(
        "POST", "/api/users", {"name": "bob", "password": PASSWORD, "admin": True}, headers=session
    )
    assert made.status == 201
    assert server.ask("PATCH", "/api/users/ada", {"disabled": True}, headers=session).status == 204
    assert server.ask("GET", "/api/users", headers=session).status == 401


def test_the_audit_log_tells_who_did_what_without_secrets(either: Server) -> None:
    server = either
    typed_user(server, "ada", "--admin")
    token = server.typed_token("--contract", "12345", "--name", "rack 7")
    server.ask("POST", "/api/session", {"name": "ada", "password": "not the password"})
    session, _ = login(server, "ada")
    assert server.ask(
        "PUT", "/api/users/ada/roles", {"contract_number": "12345", "role": "viewer"}, headers=session
    ).status == 204  # fmt: skip
    log = server.ask("GET", "/api/audit", headers=session)
    deeds = [(one["actor"].partition(":")[0], one["action"], one["subject"]) for one in log.json["items"]]
    assert ("cli", "user.add", "ada") in deeds
    assert ("anonymous", "session.refused", "ada") in deeds
    assert ("ada", "session.begin", None) in deeds
    assert ("ada", "user.role", "ada") in deeds
    assert any(action == "token.create" for _, action, _ in deeds)
    page = server.ask("GET", "/api/audit?limit=1", headers=session).json
    assert page["items"][0]["id"] == log.json["items"][0]["id"]
    rest = server.ask("GET", f"/api/audit?cursor={page['next']}", headers=session).json
    assert [one["id"] for one in rest["items"]] == [one["id"] for one in log.json["items"]][1:]
    everything = server.said.encode() + log.body
    for secret in (token, PASSWORD, "not the password", session["Cookie"].partition("=")[2]):
        assert secret.encode() not in everything


def test_the_local_token_is_this_users_and_lives_as_long_as_the_server(tmp_path: Path) -> None:
    file = tmp_path / ".local/state/gpu_monitor/local.token"
    with serving(tmp_path) as server:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        address, token = file.read_text().split()
        assert address == server.url
        me = server.ask("GET", "/api/session", token=token).json
        assert (me["kind"], me["scopes"], me["contracts"]) == (
            "token", ["experiment:write", "read", "report:write"], None,
        )  # fmt: skip
        assert token not in server.said
        (tmp_path / "other").mkdir()
        with serving(tmp_path / "other", XDG_STATE_HOME=str(tmp_path / ".local/state")) as second:
            lines = dict(line.split() for line in file.read_text().splitlines())
            assert set(lines) == {server.url, second.url}
            assert lines[server.url] == token
            assert second.stop() == 0
        assert file.read_text().split() == [address, token]
        server.kill()
    with serving(tmp_path, "--port", address.rpartition(":")[2]) as again:
        assert file.read_text().split()[0] == again.url
        assert file.read_text().split()[1] != token
        assert again.ask("GET", "/api/session", token=token).status == 401
        assert again.stop() == 0
    assert file.read_text() == ""


def test_the_link_on_a_terminal_opens_the_pages_once(tmp_path: Path) -> None:
    with serving(tmp_path, on_terminal=True) as server:
        link = server.wait_for(r"open the pages as administrator, once: http://[^/]+(/open\?code=\S+)")
        first = server.ask("GET", link)
        assert (first.status, first.headers["location"]) == (303, "/")
        session = {"Cookie": first.headers["set-cookie"].partition(";")[0]}
        me = server.ask("GET", "/api/session", headers=session).json
        assert (me["kind"], me["scopes"]) == ("local", ["admin", "read"])
        assert server.ask("GET", link).status == 401
        assert server.ask("GET", "/open?code=x").status == 401


def test_no_link_is_printed_where_nobody_looks(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.stop() == 0
        assert server.ended.wait(10)
        assert "/open" not in server.said


def test_a_foreign_page_cannot_write_and_a_foreign_name_reads_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        login_body = {"name": "ada", "password": PASSWORD}
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://localhost:1"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Origin": server.url}, 401),
            ({}, 401),
        ):
            assert server.ask("POST", "/api/session", login_body, headers=headers).status == status, headers
        assert server.ask("GET", "/api/session", headers={"Host": "evil.example"}).status == 421
        assert server.ask("GET", "/api/session", headers={"X-Forwarded-For": "203.0.113.9"}).status == 401


def test_a_body_that_is_too_large_is_refused_before_it_is_read(shared: Server) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)) as connection:
        connection.putrequest("POST", "/api/session")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (413, "close")
    chunked = [b"x" * 60_000] * 10
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/api/session", iter(chunked), encode_chunked=True,
                               headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"})  # fmt: skip
        assert connection.getresponse().status == 413
    assert shared.ask("GET", "/healthz").status == 200


def test_a_password_that_will_not_do_is_refused(shared: Server) -> None:
    for password, name in (("short", "ada"), ("aaaaaaaaaaaa", "ada"), ("adalovelace1", "adalovelace1")):
        made = shared.command_with(f"{password}\n", "user", "add", name)
        assert made.returncode == 2
        assert password not in made.stdout + made.stderr
    made = shared.command_with(f"{PASSWORD}\n", "user", "add", "a b")
    assert made.returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_commands_without_a_database_say_where_it_should_be(tmp_path: Path, shared: Server) -> None:
    missing = tmp_path / "x.db"
    asked = shared.command("token", "list", "--database", f"sqlite:///{missing}")
    assert asked.returncode == 78
    assert "there is no server's database" in asked.stderr
    assert not missing.exists()

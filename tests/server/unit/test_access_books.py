"""What is held in memory about tokens and sessions, and when it is dropped."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.sessions import SessionBook, begin_session, end_session
from gpu_monitor.server.auth.tokens import (
    Grant,
    TokenBook,
    check_grant,
    create_token,
    list_tokens,
    revoke_tokens,
)
from gpu_monitor.server.auth.upkeep import AuthUpkeep
from gpu_monitor.server.auth.users import add_user, change_user, grant_role, take_role
from gpu_monitor.server.auth.versions import read_version
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import contracts, tokens
from tests.e2e.waiting import until
from tests.fakes.clock import FakeClock

WRITE = frozenset(("report:write",))


def make(store: Store, grant: Grant, now: float = 1_700_000_000.0) -> tuple[str, str]:
    with store.write() as connection:
        made = create_token(connection, grant, now)
    assert made.secret not in repr(made)
    return made.id, made.secret


def test_a_token_tells_what_it_was_made_for(store: Store) -> None:
    book = TokenBook(store, FakeClock())
    _, secret = make(store, Grant(WRITE, "12345", enrol=True, name="rack 7"))
    found = book.find(secret)
    assert found is not None
    with store.read() as connection:
        contract = connection.execute(
            select(contracts.c.id).where(contracts.c.number == "12345")
        ).scalar_one()
    assert (found.kind, found.scopes, found.contracts, found.node, found.enrol) == (
        "token", WRITE, frozenset((contract,)), None, True,
    )  # fmt: skip
    assert book.find(secret) is found
    assert book.holds(secret)
    with store.read() as connection:
        stored = connection.execute(select(tokens)).one()
    assert secret.encode() not in stored.digest
    assert secret not in str(stored)


@pytest.mark.parametrize(
    "wrong", ["", "gpm_", "gpm_" + "A" * 43, "A" * 47, "gpm_" + "A" * 42 + "!", "x" * 10_000]
)
def test_what_is_no_token_is_nobody(store: Store, wrong: str) -> None:
    assert TokenBook(store, FakeClock()).find(wrong) is None


def test_expiry_counts_also_for_what_is_held(store: Store) -> None:
    clock = FakeClock(now=1000.0)
    book = TokenBook(store, clock)
    _, secret = make(store, Grant(WRITE, "1", expires=1060.0), 1000.0)
    assert book.find(secret) is not None
    clock.advance(59.9)
    assert book.find(secret) is not None
    clock.advance(0.1)
    assert book.find(secret) is None
    book.forget()
    assert book.find(secret) is None


def test_revoking_takes_what_enrolled_through_it_along_and_is_seen_after_a_look(store: Store) -> None:
    clock = FakeClock()
    book, sessions = TokenBook(store, clock), SessionBook(store, clock, False)
    upkeep = AuthUpkeep(store, clock, book, sessions)
    upkeep.look()
    parent, secret = make(store, Grant(WRITE, "1", enrol=True))
    _, child = make(store, Grant(WRITE, "1", node="n", parent=parent))
    _, other = make(store, Grant(WRITE, "1"))
    assert all(book.find(one) for one in (secret, child, other))
    with store.write() as connection:
        assert revoke_tokens(connection, [parent], clock.now()) == 2
        assert revoke_tokens(connection, [parent], clock.now()) == 0
    assert book.find(secret) is not None, "nobody has looked yet"
    upkeep.look()
    assert [book.find(one) is None for one in (secret, child, other)] == [True, True, False]
    assert not book.holds(secret)


def test_the_thread_sees_a_change_of_another_process(store: Store) -> None:
    clock = SystemClock()
    book = TokenBook(store, clock)
    upkeep = AuthUpkeep(store, clock, book, SessionBook(store, clock, False))
    name, secret = make(store, Grant(WRITE, "1"), clock.now())
    upkeep.start()
    try:
        assert book.find(secret) is not None
        with store.write() as connection:
            revoke_tokens(connection, [name], clock.now())
        until(lambda: book.find(secret) is None, "the token is refused", 10)
    finally:
        upkeep.stop()


def test_a_revocation_during_the_look_up_is_not_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    book = TokenBook(store, clock)
    name, secret = make(store, Grant(WRITE, "1"))
    read, inside, go_on = store.read, threading.Event(), threading.Event()

    class Slow:
        """The snapshot is taken before the revocation, the answer comes after it."""

        def __enter__(self) -> object:
            self._opened = read()
            connection = self._opened.__enter__()
            connection.execute(select(tokens)).all()
            inside.set()
            assert go_on.wait(10)
            return connection

        def __exit__(self, *error: object) -> None:
            self._opened.__exit__(None, None, None)

    monkeypatch.setattr(store, "read", Slow)
    found: list[Principal | None] = []
    finder = threading.Thread(target=lambda: found.append(book.find(secret)))
    finder.start()
    assert inside.wait(10)
    monkeypatch.setattr(store, "read", read)
    with store.write() as connection:
        revoke_tokens(connection, [name], clock.now())
    book.forget()
    go_on.set()
    finder.join(10)
    assert len(found) == 1
    assert book.find(secret) is None


def test_uses_are_written_down_when_asked(store: Store) -> None:
    clock = FakeClock(now=1000.0)
    book = TokenBook(store, clock)
    _, used = make(store, Grant(WRITE, "1", name="used"))
    make(store, Grant(WRITE, "1", name="idle"))
    assert book.find(used) is not None
    book.write_uses()
    clock.advance(100)
    assert book.find(used) is not None
    book.write_uses()
    with store.read() as connection:
        rows = {row.name: (row.first_used, row.last_used) for row in list_tokens(connection)}
    assert rows == {"used": (1000.0, 1100.0), "idle": (None, None)}


@pytest.mark.parametrize(
    "grant",
    [
        Grant(frozenset()),
        Grant(frozenset(("everything",))),
        Grant(WRITE),
        Grant(frozenset(("read",)), "1", enrol=True),
        Grant(WRITE, "1", node="n", enrol=True),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(grant: Grant) -> None:
    with pytest.raises(UsageError):
        check_grant(grant)


def test_a_session_is_its_users_until_it_ends(store: Store) -> None:
    clock = FakeClock(now=1000.0)
    book = SessionBook(store, clock, is_exposed=True)
    with store.write() as connection:
        add_user(connection, "carl", "hash", False, 1000.0)
        grant_role(connection, "carl", "12345", "member")
        grant_role(connection, "carl", "777", "admin", "vision")
        user = 1
        made = begin_session(connection, user, 1000.0)
        version = read_version(connection)
    assert made.cookie not in repr(made)
    found = book.find(made.cookie)
    assert found is not None
    with store.read() as connection:
        ids = {row.number: row.id for row in connection.execute(select(contracts))}
    assert (found.name, found.contracts, found.csrf) == ("carl", frozenset((ids["12345"],)), made.csrf)
    assert found.has_role("viewer", ids["12345"])
    assert found.has_role("member", ids["12345"], "vision")
    assert not found.has_role("admin", ids["12345"])
    assert found.has_role("admin", ids["777"], "vision")
    assert not found.has_role("viewer", ids["777"], "speech")
    assert not found.has_role("viewer", ids["777"])
    assert not found.has_role("viewer", None)
    assert not found.covers(ids["777"])
    clock.advance(7 * 86400.0)
    assert book.find(made.cookie) is None
    book.purge()
    with store.write() as connection:
        end_session(connection, made.cookie)
        take_role(connection, "carl", "12345")
        assert read_version(connection) == version + 1, "the purged session took nothing away any more"


def test_a_disabled_users_session_is_over_and_the_local_one_counts_on_loopback_only(store: Store) -> None:
    clock = FakeClock(now=1000.0)
    with store.write() as connection:
        add_user(connection, "ada", "hash", True, 1000.0)
        add_user(connection, "bob", "hash", True, 1000.0)
        session = begin_session(connection, 1, 1000.0)
        local = begin_session(connection, None, 1000.0)
    book = SessionBook(store, clock, is_exposed=False)
    ada, who = book.find(session.cookie), book.find(local.cookie)
    assert ada is not None
    assert ada.is_admin
    assert who is not None
    assert (who.kind, who.is_admin) == ("local", True)
    assert SessionBook(store, clock, is_exposed=True).find(local.cookie) is None
    with store.write() as connection:
        change_user(connection, "ada", disabled=True)
    book.forget()
    assert book.find(session.cookie) is None
    with pytest.raises(UsageError, match="only administrator"), store.write() as connection:
        change_user(connection, "bob", admin=False)


def test_rows_of_other_contracts_are_left_out(store: Store) -> None:
    with store.write() as connection:
        for number in ("1", "2", "3"):
            make_contract = contracts.insert().values(number=number)
            connection.execute(make_contract)

    def seen(of: frozenset[int] | None) -> list[str]:
        principal = Principal("token", "t", frozenset(("read",)), of)
        asked = (
            select(contracts.c.number)
            .where(contract_filter(principal, contracts.c.id))
            .order_by(contracts.c.id)
        )
        with store.read() as connection:
            return list(connection.execute(asked).scalars())

    assert seen(None) == ["1", "2", "3"]
    assert seen(frozenset((2,))) == ["2"]
    assert seen(frozenset()) == []

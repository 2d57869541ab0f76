"""Passwords: how they are kept, one at a time, and a short queue."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.auth import passwords
from gpu_monitor.server.auth.passwords import (
    NOBODY,
    PasswordDesk,
    check_new_password,
    hash_password,
    is_password,
)
from gpu_monitor.server.problems import Problem


def test_they_are_kept_as_argon2id_of_19_mib_and_two_passes() -> None:
    stored = hash_password("correct horse battery")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert stored != hash_password("correct horse battery"), "each has a salt of its own"
    assert is_password(stored, "correct horse battery")
    assert not is_password(stored, "correct horse batterz")
    assert not is_password("no hash", "correct horse battery")


def test_checking_nobodys_password_costs_the_same_and_is_never_right() -> None:
    assert NOBODY.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert not is_password(NOBODY, "correct horse battery")


@pytest.mark.parametrize("password", ["", "short", "ada.lovelace", "aaaaaaaaaaaa", "x" * 1001])
def test_what_would_be_guessed_at_once_is_refused(password: str) -> None:
    with pytest.raises(UsageError):
        check_new_password(password, "Ada.Lovelace")


def test_many_at_once_are_worked_out_one_at_a_time_and_the_rest_are_sent_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, lock, at_work = threading.Event(), threading.Lock(), [0, 0]

    def slow(stored: str, password: str) -> bool:
        with lock:
            at_work[0] += 1
            at_work[1] = max(at_work)
        assert go_on.wait(30)
        with lock:
            at_work[0] -= 1
        return password == "right"

    monkeypatch.setattr(passwords, "is_password", slow)

    async def rush() -> list[object]:
        desk = PasswordDesk()
        tries = [asyncio.ensure_future(desk.check("", "right" if n == 3 else "wrong")) for n in range(30)]
        while not sum(one.done() for one in tries) >= 21:
            await asyncio.sleep(0)
        go_on.set()
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert await desk.check("", "right"), "the queue is free again"
        desk.stop()
        return answers

    answers = asyncio.run(rush())
    assert at_work[1] == 1
    assert [answer for answer in answers if isinstance(answer, bool)] == [n == 3 for n in range(9)]
    sent_away = [answer for answer in answers if isinstance(answer, Problem)]
    assert len(sent_away) == 21
    assert {problem.status for problem in sent_away} == {429}
    assert {problem.headers["Retry-After"] for problem in sent_away} == {"2"}

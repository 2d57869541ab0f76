"""Passwords: argon2id with 19 MiB and two passes, worked out one at a time beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.problems import Problem

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MEMORY_KIB = 19 * 1024
PASSES = 2
"""The least that OWASP's password storage page recommends for argon2id; one such takes some 20 ms."""
SHORTEST, LONGEST = 10, 1000
_WAITING = 8
"""Logins that may wait for their turn; one more is told to come again."""
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$KBz2GdMA9ZT1tiS9/iKxRA$C9TMveoyALrJmZ2lL1ZeXQXZc0NVPu0z7oPwA9cd9lE"
"""What a password is checked against where there is no such user, so that the answer takes as long."""


def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher  # a C library that few requests need

    return PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=1)


def hash_password(password: str) -> str:
    """The text to store; takes a few hundredths of a second."""
    return _hasher().hash(password)


def is_password(stored: str, password: str) -> bool:
    """Whether `password` is the one whose hash is `stored`."""
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def check_new_password(password: str, name: str) -> None:
    """UsageError, saying why, where a new password will not do."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise UsageError(
            f"a password has {SHORTEST} to {LONGEST} characters", "A few words in a row do well."
        )
    if password.lower() == name.lower() or len(set(password)) < 4:
        raise UsageError("that password would be guessed at once", "A few words in a row do well.")


class PasswordDesk:
    """One thread that works passwords out in turn: many logins at once cost time, never memory."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._waiting = 0

    async def check(self, stored: str, password: str) -> bool:
        """Whether the password is right; Problem 429 where too many wait."""
        self._enter()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, is_password, stored, password
            )
        finally:
            self._waiting -= 1

    async def hash(self, password: str) -> str:
        """The text to store; Problem 429 where too many wait."""
        self._enter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, hash_password, password)
        finally:
            self._waiting -= 1

    def _enter(self) -> None:
        if self._waiting > _WAITING:
            raise Problem(429, "Too many logins", "Try again in a moment.", headers={"Retry-After": "2"})
        self._waiting += 1

    def start(self) -> None:
        """Nothing is begun before the first password."""

    def stop(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

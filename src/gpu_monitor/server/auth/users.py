"""Users and their roles, as rows; every change that takes a right away is heeded within a second everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, update

from gpu_monitor.core.errors import NothingFound, UsageError
from gpu_monitor.server.auth.contracts import ensure_contract, find_contract
from gpu_monitor.server.auth.principal import ROLES
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.schema import contracts, memberships, sessions, users

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"


@dataclass(frozen=True)
class Membership:
    """A role in a contract; `project` is empty for the whole contract."""

    contract: str
    project: str
    role: str


@dataclass(frozen=True)
class User:
    """One user, without the password's hash."""

    id: int
    name: str
    admin: bool
    disabled: bool
    created: float
    memberships: tuple[Membership, ...]


def add_user(connection: Connection, name: str, password_hash: str, admin: bool, now: float) -> None:
    """Make a user; UsageError where the name will not do or is taken."""
    if not re.fullmatch(NAME_PATTERN, name) or not name.isprintable():
        raise UsageError(
            f"{name!r} cannot be a user's name",
            "Letters, digits and . _ @ + - , up to 64, a letter or digit first.",
        )
    if connection.execute(select(users.c.id).where(func.lower(users.c.name) == name.lower())).first():
        raise UsageError(f"there is a user {name} already", "gpu_monitor user passwd changes the password.")
    connection.execute(
        users.insert().values(name=name, password=password_hash, admin=admin, disabled=False, created=now)
    )


def list_users(connection: Connection) -> list[User]:
    """Every user, by name."""
    held: dict[int, list[Membership]] = {}
    asked = (
        select(memberships.c.user, contracts.c.number, memberships.c.project, memberships.c.role)
        .join(contracts, memberships.c.contract == contracts.c.id)
        .order_by(contracts.c.number, memberships.c.project)
    )
    for user, number, project, role in connection.execute(asked):
        held.setdefault(user, []).append(Membership(number, project, role))
    rows = connection.execute(select(users).order_by(users.c.name))
    return [
        User(row.id, row.name, row.admin, row.disabled, row.created, tuple(held.get(row.id, ())))
        for row in rows
    ]


def find_user(connection: Connection, name: str) -> User:
    """One user; NothingFound where there is none of that name."""
    found = next((user for user in list_users(connection) if user.name == name), None)
    if found is None:
        raise NothingFound(f"there is no user {name}", "gpu_monitor user list shows them.")
    return found


def has_admin(connection: Connection) -> bool:
    """Whether an administrator is there who may log in."""
    asked = select(users.c.id).where(users.c.admin, ~users.c.disabled).limit(1)
    return connection.execute(asked).first() is not None


def change_user(
    connection: Connection,
    name: str,
    password_hash: str | None = None,
    admin: bool | None = None,
    disabled: bool | None = None,
) -> None:
    """Change what is given and end the user's sessions; NothingFound, or UsageError for the last administrator."""
    user = find_user(connection, name)
    values: dict[str, object] = {}
    if password_hash is not None:
        values["password"] = password_hash
    if admin is not None:
        values["admin"] = admin
    if disabled is not None:
        values["disabled"] = disabled
    if not values:
        return
    connection.execute(update(users).where(users.c.id == user.id).values(values))
    if user.admin and not user.disabled and not has_admin(connection):
        raise UsageError(f"{name} is the only administrator", "Make another one first.")
    connection.execute(delete(sessions).where(sessions.c.user == user.id))
    raise_version(connection)


def remove_user(connection: Connection, name: str) -> None:
    """Remove a user with all roles and sessions; NothingFound, or UsageError for the last administrator."""
    user = find_user(connection, name)
    connection.execute(delete(users).where(users.c.id == user.id))
    if user.admin and not user.disabled and not has_admin(connection):
        raise UsageError(f"{name} is the only administrator", "Make another one first.")
    raise_version(connection)


def grant_role(connection: Connection, name: str, contract: str, role: str, project: str = "") -> None:
    """Give a role in a contract (or one project of it), in place of the one held; NothingFound, UsageError."""
    if role not in ROLES:
        raise UsageError(f"there is no role {role}", f"Roles are {', '.join(ROLES)}.")
    user, where = find_user(connection, name), ensure_contract(connection, contract)
    _take(connection, user.id, where, project)
    connection.execute(memberships.insert().values(user=user.id, contract=where, project=project, role=role))
    raise_version(connection)


def take_role(connection: Connection, name: str, contract: str, project: str = "") -> None:
    """Take the role in a contract (or one project of it) away; NothingFound where none is held."""
    user, where = find_user(connection, name), find_contract(connection, contract)
    if where is None or not _take(connection, user.id, where, project):
        raise NothingFound(f"{name} holds no role there", "gpu_monitor user list shows the roles.")
    raise_version(connection)


def _take(connection: Connection, user: int, contract: int, project: str) -> bool:
    held = (memberships.c.user == user, memberships.c.contract == contract, memberships.c.project == project)
    return connection.execute(delete(memberships).where(*held)).rowcount > 0

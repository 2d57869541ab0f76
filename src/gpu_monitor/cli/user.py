"""`gpu_monitor user`: the people who may log in to the server."""

from __future__ import annotations

import argparse
import getpass
import sys

from gpu_monitor.cli.consent import agrees
from gpu_monitor.cli.options import Formatter
from gpu_monitor.cli.output import json_text, note, table
from gpu_monitor.cli.server_database import actor, add_place, opened
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOTHING, UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.contracts import has_nodes
from gpu_monitor.server.auth.passwords import check_new_password, hash_password
from gpu_monitor.server.auth.principal import ROLES
from gpu_monitor.server.auth.users import (
    Membership,
    add_user,
    change_user,
    find_user,
    grant_role,
    list_users,
    remove_user,
    take_role,
)

EXAMPLES = """examples:
  gpu_monitor user add ada --admin
  gpu_monitor user add carl
  gpu_monitor user grant carl --contract 12345 --role viewer
  gpu_monitor user passwd carl
  gpu_monitor user disable carl
  gpu_monitor user remove carl

The password is asked for on a terminal, and read as one line from a pipe. A running server heeds every change
within a second."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `user` command."""
    parser = subparsers.add_parser(
        "user",
        help="the people who may log in to the server",
        description="The server's users and roles; works on its database, beside a running server.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a user; asks for the password")
    add.add_argument("--admin", action="store_true", help="may see and change everything")
    listing = actions.add_parser("list", help="every user and role")
    listing.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    grant = actions.add_parser("grant", help="give a role in a contract, or take it away")
    grant.add_argument("--contract", metavar="NUMBER", required=True, help="the customer account")
    grant.add_argument("--project", metavar="NAME", default="", help="only in this project of it")
    grant.add_argument("--role", required=True, choices=(*ROLES, "none"), help="none takes the role away")
    passwd = actions.add_parser("passwd", help="change the password; the user's sessions end")
    disable = actions.add_parser("disable", help="let the user in no more; the user's sessions end")
    enable = actions.add_parser("enable", help="let the user in again")
    remove = actions.add_parser("remove", help="remove the user and all roles; asks first")
    remove.add_argument("--yes", action="store_true", default=False, help="do not ask")
    for action in (add, grant, passwd, disable, enable, remove):
        action.add_argument("name", metavar="NAME", help="the user")
    for action in (add, listing, grant, passwd, disable, enable, remove):
        add_place(action)


def run(args: argparse.Namespace) -> int:
    """Do what `gpu_monitor user ACTION` asks; the exit code."""
    if args.action == "list":
        return _list(args)
    if args.action == "add":
        return _add(args)
    if args.action == "grant":
        return _grant(args)
    if args.action == "remove":
        return _remove(args)
    return _change(args)


def _add(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    with opened(args, may_make=True) as store:
        hashed = _ask_password(args.name)
        with store.write() as connection:
            add_user(connection, args.name, hashed, args.admin, now)
            record(connection, now, actor(), "user.add", args.name, detail={"admin": args.admin})
    role = "an administrator" if args.admin else "sees nothing before gpu_monitor user grant"
    print(f"user {args.name} was made ({role})")
    return EXIT_DONE


def _ask_password(name: str) -> str:
    """The hash of a password from the terminal (typed twice) or from a pipe; UsageError where it will not do."""
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password for {name}: ")
        check_new_password(password, name)
        if getpass.getpass("Again: ") != password:
            raise UsageError("the two were not the same", "Try again.")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
        check_new_password(password, name)
    return hash_password(password)


def _change(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    with opened(args) as store:
        with store.read() as connection:
            find_user(connection, args.name)
        hashed = _ask_password(args.name) if args.action == "passwd" else None
        disabled = {"disable": True, "enable": False}.get(args.action)
        with store.write() as connection:
            change_user(connection, args.name, password_hash=hashed, disabled=disabled)
            record(connection, now, actor(), f"user.{args.action}", args.name)
    said = {"passwd": "has a new password", "disable": "is let in no more", "enable": "is let in again"}
    print(f"user {args.name} {said[args.action]}")
    return EXIT_DONE


def _remove(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    with opened(args) as store:
        with store.read() as connection:
            user = find_user(connection, args.name)
        may = "everything" if user.admin else ", ".join(_role(one) for one in user.memberships) or "nothing"
        told = f"User {args.name} (may: {may}) will be removed; the audit log keeps the name."
        if not args.yes and not agrees(told):
            note("nothing was changed")
            return EXIT_FAILED
        with store.write() as connection:
            remove_user(connection, args.name)
            record(connection, now, actor(), "user.remove", args.name)
    print(f"user {args.name} was removed")
    return EXIT_DONE


def _grant(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    with opened(args) as store, store.write() as connection:
        is_known = has_nodes(connection, args.contract)
        if args.role == "none":
            take_role(connection, args.name, args.contract, args.project)
        else:
            grant_role(connection, args.name, args.contract, args.role, args.project)
        detail = {"contract_number": args.contract, "project": args.project or None, "role": args.role}
        record(connection, now, actor(), "user.role", args.name, detail=detail)
    where = f"contract {args.contract}" + (f", project {args.project}" if args.project else "")
    print(f"user {args.name}: {args.role} in {where}")
    if not is_known and args.role != "none":
        warning = (
            f"warning: no node reports under contract {args.contract} yet; is it spelt as the agents have it?"
        )
        print(warning, file=sys.stderr)
    return EXIT_DONE


def _list(args: argparse.Namespace) -> int:
    with opened(args) as store, store.read() as connection:
        found = list_users(connection)
    if args.json:
        rows = [
            {
                "name": user.name, "admin": user.admin, "disabled": user.disabled,
                "created": format_time(int(user.created)),
                "memberships": [
                    {"contract_number": one.contract, "project": one.project or None, "role": one.role}
                    for one in user.memberships
                ],
            }
            for user in found
        ]  # fmt: skip
        print(json_text(rows, indent=1))
        return EXIT_DONE
    if not found:
        print("there is no user yet; gpu_monitor user add makes one", file=sys.stderr)
        return EXIT_NOTHING
    table(
        ("NAME", "STATE", "MAY", "CREATED"),
        (
            (user.name, "disabled" if user.disabled else "in force",
             "everything" if user.admin else ", ".join(_role(one) for one in user.memberships) or None,
             format_time(int(user.created)))
            for user in found
        ),
        sys.stdout,
    )  # fmt: skip
    return EXIT_DONE


def _role(one: Membership) -> str:
    return f"{one.role} of {one.contract}" + (f"/{one.project}" if one.project else "")

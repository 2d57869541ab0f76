"""`gpu_monitor token`: the tokens with which agents, scripts and people reach the server."""

from __future__ import annotations

import argparse
import sys
import uuid

from gpu_monitor.cli.options import Formatter
from gpu_monitor.cli.output import json_text, table
from gpu_monitor.cli.server_database import actor, add_place, opened
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING, UsageError
from gpu_monitor.core.times import format_time, parse_duration
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.principal import SCOPES
from gpu_monitor.server.auth.tokens import (
    Grant,
    TokenRow,
    check_grant,
    create_token,
    list_tokens,
    revoke_tokens,
)

EXAMPLES = """examples:
  gpu_monitor token create --contract 12345 --enrol   (each node gets its own)
  gpu_monitor token create --contract 12345 --node 6f1c0d5e-...
  gpu_monitor token create --contract 12345           (for all of its nodes)
  gpu_monitor token create --scope read --expires 90d --name grafana
  gpu_monitor token list
  gpu_monitor token revoke 3fa9c2d18b07

The token is printed once, alone on stdout. Put it into the agent's server.token_file (mode 0600).
A running server heeds a new token at once and a revoked one within a second."""
_NEVER = 4102444800.0
"""The year 2100: whoever wants longer leaves --expires out."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `token` command."""
    parser = subparsers.add_parser(
        "token",
        help="make, list or revoke the server's tokens",
        description="The server's API tokens; works on its database, beside a running server.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a token and print it, once")
    create.add_argument("--contract", metavar="NUMBER", help="the customer account it is for")
    # The program itself has a --node, too; here it is a node's id.
    kind = create.add_mutually_exclusive_group()
    kind.add_argument("--node", metavar="ID", default=None, help="it writes only this node's rows (a UUID)")
    kind.add_argument("--enrol", action="store_true", help="a new node that shows it gets a token of its own")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, metavar="SCOPE",
        help=f"what for: {', '.join(SCOPES)}; may be repeated (default: report:write)",
    )  # fmt: skip
    create.add_argument(
        "--expires", metavar="DURATION", help="how long it counts: 90d, 12h (default: for ever)"
    )
    create.add_argument("--name", metavar="TEXT", help="a word by which people know it")
    listing = actions.add_parser("list", help="every token: what for, used when; never the token itself")
    revoke = actions.add_parser("revoke", help="refuse a token from now on, with those made through it")
    revoke.add_argument("ids", metavar="ID", nargs="+", help="as token list shows it")
    for action in (create, listing):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    for action in (create, listing, revoke):
        add_place(action)


def run(args: argparse.Namespace) -> int:
    """Do what `gpu_monitor token ACTION` asks; the exit code."""
    if args.action == "create":
        return _create(args)
    return _list(args) if args.action == "list" else _revoke(args)


def _create(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    grant = _grant(args, now)
    is_named = args.database is not None or args.directory is not None
    with opened(args, may_make=is_named) as store, store.write() as connection:
        made = create_token(connection, grant, now)
        detail = {"scopes": sorted(grant.scopes), "contract_number": grant.contract, "node": grant.node}
        record(connection, now, actor(), "token.create", made.id, detail=detail)
    if args.json:
        expires = None if grant.expires is None else format_time(int(grant.expires))
        shown = {"id": made.id, "token": made.secret, **detail, "enrol": grant.enrol}
        print(json_text({**shown, "expires": expires, "name": grant.name}))
        return EXIT_DONE
    print(made.secret)
    said = f"token {made.id} ({_purpose(grant)}); it is shown only now"
    print(f"gpu_monitor: {said}", file=sys.stderr)
    return EXIT_DONE


def _grant(args: argparse.Namespace, now: float) -> Grant:
    """What the token is to be for; UsageError where that makes no sense."""
    scopes = frozenset(args.scope or ("report:write",))
    contract = None if args.contract is None else args.contract.strip()
    if contract is not None and (not contract or not contract.isprintable() or len(contract) > 100):
        raise UsageError(f"{args.contract!r} is no contract number", "It stands in your contract.")
    node = None
    if args.node is not None:
        try:
            node = str(uuid.UUID(args.node))
        except ValueError:
            raise UsageError(
                f"{args.node!r} is no node's id", "gpu_monitor doctor shows it on the node."
            ) from None
    expires = None if args.expires is None else now + parse_duration(args.expires)
    if expires is not None and not now < expires < _NEVER:
        raise UsageError(
            f"--expires {args.expires} is no time that a token can end", "For example --expires 90d."
        )
    grant = Grant(scopes, contract, node, args.enrol, expires, args.name)
    check_grant(grant)
    return grant


def _purpose(grant: Grant) -> str:
    whom = ""
    if "report:write" in grant.scopes:
        whom = (
            f", node {grant.node}"
            if grant.node
            else ", for enrolling nodes"
            if grant.enrol
            else ", every node"
        )
    of = f"contract {grant.contract}" if grant.contract is not None else "every contract"
    return f"{' '.join(sorted(grant.scopes))}, {of}{whom}"


def _list(args: argparse.Namespace) -> int:
    with opened(args) as store, store.read() as connection:
        rows = sorted(list_tokens(connection, limit=1_000_000), key=lambda row: (row.created, row.id))
    if args.json:
        print(json_text([_record(row) for row in rows], indent=1))
        return EXIT_DONE
    if not rows:
        print("there is no token yet; gpu_monitor token create makes one", file=sys.stderr)
        return EXIT_NOTHING
    header = ("ID", "NAME", "SCOPES", "CONTRACT", "NODE", "STATE", "CREATED", "EXPIRES", "LAST USED")
    now = SystemClock().now()
    table(
        header,
        (
            (row.id, row.name, " ".join(row.scopes), row.contract or "all", _node(row), _state(row, now),
             format_time(int(row.created)), _moment(row.expires) or "never", _moment(row.last_used))
            for row in rows
        ),
        sys.stdout,
    )  # fmt: skip
    return EXIT_DONE


def _node(row: TokenRow) -> str | None:
    return row.node or ("(enrols)" if row.enrol else None)


def _state(row: TokenRow, now: float) -> str:
    if row.revoked is not None:
        return "revoked"
    return "expired" if row.expires is not None and row.expires <= now else "in force"


def _moment(epoch: float | None) -> str | None:
    return None if epoch is None else format_time(int(epoch))


def _record(row: TokenRow) -> dict[str, object]:
    times = {
        name: _moment(getattr(row, name))
        for name in ("created", "expires", "revoked", "first_used", "last_used")
    }
    return {
        "id": row.id, "name": row.name, "scopes": list(row.scopes), "contract_number": row.contract, "node": row.node,
        "enrol": row.enrol, "parent": row.parent, **times,
    }  # fmt: skip


def _revoke(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    with opened(args) as store, store.write() as connection:
        changed = revoke_tokens(connection, args.ids, now)
        if changed:
            record(connection, now, actor(), "token.revoke", " ".join(args.ids))
    if not changed:
        print("gpu_monitor: no such token is in force", file=sys.stderr)
        return EXIT_NOTHING
    print(f"{changed} token{'' if changed == 1 else 's'} revoked")
    return EXIT_DONE

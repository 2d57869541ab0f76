"""`gpu_monitor serve`: the central server."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any, Literal

from gpu_monitor.cli.logs import set_up
from gpu_monitor.cli.options import Formatter, port
from gpu_monitor.config.load import service_environment
from gpu_monitor.config.model import Logging
from gpu_monitor.config.server import ServerSettings, load_server
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.run import Starter, run_server
from gpu_monitor.service.notify import Notifier

EXAMPLES = """examples:
  gpu_monitor serve      SQLite in this folder, on loopback, port 8000
  gpu_monitor serve --port 9000 --directory /srv/gpu_monitor
  gpu_monitor serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  gpu_monitor serve --behind-proxy 10.0.0.0/8 --host 0.0.0.0
  gpu_monitor serve --database postgresql://me@db.example.com/gpu_monitor

Settings come from these options, then the environment, then .env in the directory (see .env.example).
A password of the database belongs into DATABASE_URL or PGPASSFILE, never into an option."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `serve` command."""
    parser = subparsers.add_parser(
        "serve",
        help="run the central server",
        description="Take the agents' reports, store them exactly once, watch them, show them.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = parser.add_argument
    add("--host", metavar="ADDRESS", help="address to listen on (default: localhost)")
    add("--port", metavar="PORT", type=port, help="port to listen on; 0 takes a free one (default: 8000)")
    add("--directory", metavar="DIR", type=Path, help="where .env and relative paths are (default: here)")
    add("--database", metavar="URL", help="sqlite:///FILE or postgresql://USER@HOST/NAME")
    add("--tls-cert", metavar="FILE", help="certificate and chain (PEM)")
    add("--tls-key", metavar="FILE", help="the certificate's key (PEM)")
    add("--behind-proxy", metavar="CIDR", help="networks of proxies whose forwarded headers count")
    add(
        "--link",
        action="store_true",
        default=False,
        help="say the one-time link also where stderr is no terminal",
    )
    add("--rules", metavar="FILE", help="TOML file with alert rules")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = server_settings(args)
    form: Literal["text", "json"] = "json" if settings.log_format == "json" else "text"
    is_loud = settings.debug or args.verbose
    set_up(Logging(level=settings.log_level, format=form, file=None), None, args.log_level, is_loud)
    for library in ("uvicorn.error", "alembic", "apprise"):
        logging.getLogger(library).setLevel(logging.WARNING)
    notifier = Notifier.from_environment(service_environment(), os.getpid())
    starter = Starter(
        say=lambda line: print(line, file=sys.stderr, flush=True),
        ready=notifier.ready,
        stopping=notifier.stopping,
        wants_link=args.link or sys.stderr.isatty(),
    )
    return run_server(settings, SystemClock(), starter)


def server_settings(args: argparse.Namespace) -> ServerSettings:
    """The server's settings, as the command line changes them."""
    given: dict[str, Any] = {
        field: getattr(args, option, None)
        for field, option in (
            ("host", "host"), ("port", "port"), ("database_url", "database"),
            ("tls_cert", "tls_cert"), ("tls_key", "tls_key"), ("behind_proxy", "behind_proxy"),
            ("rules_file", "rules"),
        )
    }  # fmt: skip
    return load_server(given, args.directory)

"""The server's database for commands that work on it directly, beside a running server."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_monitor.config.server import load_server
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.url import parse_url


def add_place(parser: argparse.ArgumentParser) -> None:
    """`--database` and `--directory`, as `serve` has them."""
    parser.add_argument("--database", metavar="URL", help="sqlite:///FILE or postgresql://USER@HOST/NAME")
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, help="the server's directory, with its .env (default: here)"
    )


@contextlib.contextmanager
def opened(args: argparse.Namespace, may_make: bool = False) -> Iterator[Store]:
    """The database that the arguments, the environment or `.env` name.

    Writing beside a running server is safe: each command is one short transaction, and SQLite and PostgreSQL
    let one writer in after the other. ConfigError where a SQLite file is missing, unless `may_make`.
    """
    settings = load_server({"database_url": args.database}, args.directory)
    url = parse_url(settings.database_url, settings.directory)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        if not may_make:
            raise ConfigError(
                f"there is no server's database {url.database}",
                "Run this where gpu_monitor serve was started, or name its --directory or --database.",
            )
        print(f"gpu_monitor: making the server's database {url.database}", file=sys.stderr)
    with contextlib.closing(open_store(url)) as store:
        yield store


def files_folder(args: argparse.Namespace) -> Path:
    """The folder with the files of experiments (BLOBS_DIRECTORY)."""
    settings = load_server({"database_url": args.database}, args.directory)
    return settings.directory / settings.blobs_directory


def actor() -> str:
    """Who works on this command line, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name
        return "cli"

"""Options that several commands share, and the odd spellings that argparse does not take by itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

_TIME_OPTIONS = frozenset(
    (
        "-sc",
        "--show-collection",
        "-ss",
        "--search-send",
        "--since",
        "--until",
        "--start",
        "--from",
        "--to",
        "--timezone",
    )
)
_RELATIVE = re.compile(r"^-\s*\d")


def join_times(argv: Sequence[str]) -> list[str]:
    """`-sc -2h` as `-sc=-2h`: a relative time looks like an option to argparse."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in _TIME_OPTIONS and _RELATIVE.match(word):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def add_config(parser: argparse.ArgumentParser) -> None:
    """`-c`, for a command; what was given before the command's name holds unless it is given again."""
    parser.add_argument(
        "-c", "--config", metavar="CONFIG", default=argparse.SUPPRESS, help="configuration file (JSON)"
    )


def add_node(parser: argparse.ArgumentParser) -> None:
    """`--node`, for commands that read."""
    parser.add_argument(
        "--node", metavar="NAME", default=None, help="an imported node instead of this machine"
    )


def add_span(parser: argparse.ArgumentParser, default: str) -> None:
    """`--since` and `--until`."""
    parser.add_argument("--since", metavar="TIME", help=f"from this time on (default: {default})")
    parser.add_argument("--until", metavar="TIME", help="up to this time (default: now)")


def add_format(parser: argparse.ArgumentParser, choices: Sequence[str], default: str) -> None:
    """`-f`, for a command with its own formats."""
    parser.add_argument(
        "-f", "--output-format", dest="output_format", choices=list(choices), default=default,
        help=f"how to print (default: {default})",
    )  # fmt: skip


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with our own line breaks in examples, at most 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

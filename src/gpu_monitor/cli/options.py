"""Options that several commands share, and the odd spellings that argparse does not take by itself."""

from __future__ import annotations

import argparse
import re
import textwrap
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
_EXPLAINED = re.compile(r"( +\S.*?) {2,}(\S.*)")
"""An example line: a command, and two spaces or more behind it what it does."""
_BELOW = 6
_LAST_PORT = 65535
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


def port(text: str) -> int:
    """A TCP port, as a type of an option: 0 (a free one) to 65535; else the command line is refused."""
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to {_LAST_PORT}")
    return int(text)


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


class Formatter(argparse.HelpFormatter):
    """Help that fits the terminal: prose is wrapped anew, examples keep their lines, the same on each Python."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_block(block.splitlines(), width) for block in text.strip().split("\n\n"))

    def add_argument(self, action: argparse.Action) -> None:
        """Count the indentation of commands, too, as Python does from 3.13 on: so the texts stand in one column."""
        super().add_argument(action)
        if action.help is not argparse.SUPPRESS:
            for command in self._iter_indented_subactions(action):
                length = len(self._format_action_invocation(command)) + self._current_indent
                self._action_max_length = max(self._action_max_length, length)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-c, --config CONFIG`: one metavar per option, as Python prints it from 3.13 on."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def _block(lines: Sequence[str], width: int) -> str:
    """A paragraph in lines of `width`; of examples that do not fit, the explanations go below the commands."""
    if not any(line.startswith("  ") for line in lines):
        return textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
    if all(len(line) <= width for line in lines):
        return "\n".join(lines)
    return "\n".join(_below(line, width) for line in lines)


def _below(line: str, width: int) -> str:
    explained = _EXPLAINED.match(line)
    if explained is None:
        return line
    margin = " " * _BELOW
    return explained[1] + "\n" + textwrap.fill(
        explained[2], width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )  # fmt: skip

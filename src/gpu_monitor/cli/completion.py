"""`gpu_monitor completion`: scripts that complete commands, options, choices and files in a shell."""

from __future__ import annotations

import argparse
import re
import sys

from gpu_monitor.agent.ask import parse_fields
from gpu_monitor.cli.completion_scripts import Command, Kind, Option, Value, bash, fish, zsh
from gpu_monitor.cli.main import build_parser
from gpu_monitor.cli.options import Formatter
from gpu_monitor.core.errors import EXIT_DONE

_SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
_FILE = re.compile(r"FILE|CONFIG|PATH|FOLDER")
_TIMES = ("today", "yesterday", "-1h", "-24h", "-7d")
_LISTS = ("--fields",)

EXAMPLES = """examples:
  echo 'eval "$(gpu_monitor completion bash)"' >> ~/.bashrc
  echo 'eval "$(gpu_monitor completion zsh)"' >> ~/.zshrc
  gpu_monitor completion fish > ~/.config/fish/completions/gpu_monitor.fish

The line in ~/.zshrc must stand below compinit. They complete for both names of the program, gpu_monitor and gpu-monitor."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `completion` command."""
    parser = subparsers.add_parser(
        "completion",
        help="print shell completion (bash, zsh, fish)",
        description="Print a script that lets the shell complete commands, options, choices and files.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=run)
    parser.add_argument("shell", choices=sorted(_SHELLS), help="for which shell")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(_SHELLS[args.shell](command_tree(build_parser("*"))))
    return EXIT_DONE


def command_tree(parser: argparse.ArgumentParser, name: str = "", text: str = "") -> Command:
    """What a parser takes, as far as a shell can complete it."""
    options, positionals, below = [], [], []
    # argparse has no public way to ask a parser what it takes.
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = [command_tree(child, key, texts.get(key, "")) for key, child in action.choices.items()]
        elif action.option_strings:
            options.append(Option(tuple(action.option_strings), _plain(action.help), _value(action)))
        else:
            value = _value(action)
            if value is not None:
                positionals.append(value)
    return Command(name, _plain(text), tuple(options), tuple(positionals), tuple(below))


def _plain(text: str | None) -> str:
    return (text or "").replace("%%", "%").split("\n")[0]


def _value(action: argparse.Action) -> Value | None:
    """What may follow an option or stand in a place; None where nothing does."""
    if action.nargs == 0:
        return None
    is_optional = action.nargs in ("?", "*")
    label = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        return Value(Kind.CHOICE, label, tuple(str(choice) for choice in action.choices), is_optional)
    if any(name in _LISTS for name in action.option_strings):
        return Value(Kind.LIST, label, ("all", *parse_fields("all")), is_optional)
    if _FILE.search(label):
        return Value(Kind.FILE, label, (), is_optional)
    if label == "TIME":
        return Value(Kind.CHOICE, label, _TIMES, is_optional)
    return Value(Kind.WORD, label, (), is_optional)

"""The text of completion scripts for bash, zsh and fish, made from a tree of commands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

PROGRAMS = ("gpu_monitor", "gpu-monitor")


class Kind(Enum):
    """What a value can be completed with."""

    CHOICE = "choice"
    LIST = "list"
    """Several of the words, with commas between them."""
    FILE = "file"
    WORD = "word"
    """Nothing a shell could know."""


@dataclass(frozen=True)
class Value:
    """What follows an option or stands in a place."""

    kind: Kind
    label: str
    words: tuple[str, ...] = ()
    is_optional: bool = False


@dataclass(frozen=True)
class Option:
    """An option by its names; `value` None: a flag."""

    names: tuple[str, ...]
    text: str
    value: Value | None


@dataclass(frozen=True)
class Command:
    """A command: its options, what stands behind them, and the commands below it."""

    name: str
    text: str
    options: tuple[Option, ...]
    positionals: tuple[Value, ...]
    below: tuple[Command, ...]


def _walk(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    yield path, command
    for child in command.below:
        yield from _walk(child, (*path, child.name))


def _steps(root: Command) -> Iterator[tuple[str, str, str]]:
    """From which command (names with spaces) which word leads to which."""
    for path, command in _walk(root):
        for child in command.below:
            yield " ".join(path), child.name, " ".join((*path, child.name))


def _takers(root: Command) -> Iterator[tuple[str, str]]:
    """The options after which the next word is always a value, each with its command."""
    for path, command in _walk(root):
        for option in command.options:
            if option.value is not None and not option.value.is_optional:
                yield from ((" ".join(path), name) for name in option.names)


def _one_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---------------------------------------------------------------- bash

_BASH = """# Completion of gpu_monitor for bash 3.2 and newer.
_gpu_monitor_files() {{
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "$1"))
    compopt -o filenames 2>/dev/null
}}

_gpu_monitor_list() {{
    local done="" last="$1"
    case "$last" in *,*) done="${{last%,*}}," last="${{last##*,}}" ;; esac
    COMPREPLY=($(compgen -P "$done" -W "$2" -- "$last"))
    compopt -o nospace 2>/dev/null
}}

_gpu_monitor() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" at="" skip="" word i
    # bash takes --option=value apart at the sign.
    if [ "$cur" = "=" ]; then cur=""; elif [ "$prev" = "=" ]; then prev="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${{COMP_WORDS[i]}}"
        if [ "$word" = "=" ]; then skip=yes; continue; fi
        if [ -n "$skip" ]; then skip=""; continue; fi
        case "$at|$word" in
            {takes}) skip=yes ;;
{steps}
        esac
    done
    COMPREPLY=()
    case "$at|$prev" in
{values}
    esac
    case "$at" in
{places}
    esac
}}
complete -F _gpu_monitor {programs}
"""


def bash(root: Command) -> str:
    """A script for bash."""
    takes = " | ".join(f'"{at}|{name}"' for at, name in _takers(root))
    steps = "\n".join(f'            "{at}|{name}") at="{to}" ;;' for at, name, to in _steps(root))
    values, places = [], []
    for path, command in _walk(root):
        at = " ".join(path)
        for option in command.options:
            if option.value is not None:
                patterns = " | ".join(f'"{at}|{name}"' for name in option.names)
                values.append(f"        {patterns}) {_bash_value(option.value)} ;;")
        places.append(f'        "{at}") {_bash_place(command)} ;;')
    return _BASH.format(
        takes=takes,
        steps=steps,
        values="\n".join(values),
        places="\n".join(places),
        programs=" ".join(PROGRAMS),
    )


def _bash_value(value: Value) -> str:
    """Complete the value of an option; an optional one may be left out, so commands and options follow too."""
    words = " ".join(value.words)
    if value.kind is Kind.FILE:
        return '_gpu_monitor_files "$cur"; return'
    if value.kind is Kind.LIST:
        return f'_gpu_monitor_list "$cur" "{words}"; return'
    if value.kind is Kind.WORD:
        return "return"
    found = f'COMPREPLY=($(compgen -W "{words}" -- "$cur"))'
    return (
        f'{found}; [ -n "$cur" ] && [ ${{#COMPREPLY[@]}} -gt 0 ] && return'
        if value.is_optional
        else f"{found}; return"
    )


def _bash_place(command: Command) -> str:
    options = " ".join(name for option in command.options for name in option.names)
    first = command.positionals[0] if command.positionals else None
    if first is not None and first.kind is Kind.FILE:
        other = '_gpu_monitor_files "$cur"'
    else:
        words = [child.name for child in command.below] or list(first.words if first is not None else ())
        other = f'COMPREPLY+=($(compgen -W "{" ".join(words) or options}" -- "$cur"))'
    return f'case "$cur" in -*) COMPREPLY+=($(compgen -W "{options}" -- "$cur")) ;; *) {other} ;; esac'


# ---------------------------------------------------------------- zsh

_ZSH_END = """
if [ "$funcstack[1]" = "_gpu_monitor" ]; then
    _gpu_monitor "$@"
else
    compdef _gpu_monitor {programs}
fi
"""


def zsh(root: Command) -> str:
    """A script for zsh; works from a folder of `fpath` and through eval."""
    parts = [f"#compdef {' '.join(PROGRAMS)}\n# Completion of gpu_monitor for zsh 5.\n"]
    parts += [_zsh_function(path, command) for path, command in _walk(root)]
    return "\n".join(parts) + _ZSH_END.format(programs=" ".join(PROGRAMS))


def _zsh_name(path: Iterable[str]) -> str:
    return "_".join(("_gpu_monitor", *path))


def _zsh_function(path: tuple[str, ...], command: Command) -> str:
    specs = [_zsh_option(option) for option in command.options]
    if command.below:
        specs += ["'(-): :->command'", "'(-)*:: :->rest'"]
    for number, value in enumerate(command.positionals, 1):
        place = "*" if value.kind is Kind.FILE else str(number)
        specs.append(_one_quoted(f"{place}:{value.label}:{_zsh_action(value)}"))
    lines = [f"{_zsh_name(path)}() {{", "    local context state line", "    typeset -A opt_args"]
    lines.append("    _arguments -C \\\n        " + " \\\n        ".join(specs))
    if command.below:
        described = " ".join(_one_quoted(f"{child.name}:{child.text}") for child in command.below)
        lines += [
            "    case $state in",
            f"        command) local -a commands; commands=({described}); _describe command commands ;;",
            "        rest)",
            "            case $words[1] in",
            *(
                f"                {child.name}) {_zsh_name((*path, child.name))} ;;"
                for child in command.below
            ),
            "            esac ;;",
            "    esac",
        ]
    return "\n".join([*lines, "}", ""])


def _zsh_option(option: Option) -> str:
    text = option.text
    for sign in ("\\", "[", "]", ":"):
        text = text.replace(sign, "\\" + sign)
    tail = f"[{text}]"
    if option.value is not None:
        colon = "::" if option.value.is_optional else ":"
        tail += f"{colon}{option.value.label.replace(':', chr(92) + ':')}:{_zsh_action(option.value)}"
    if len(option.names) == 1:
        return _one_quoted(option.names[0] + tail)
    return f"'({' '.join(option.names)})'{{{','.join(option.names)}}}{_one_quoted(tail)}"


def _zsh_action(value: Value) -> str:
    if value.kind is Kind.FILE:
        return "_files"
    if value.kind is Kind.LIST:
        return f"_sequence compadd - {' '.join(value.words)}"
    return f"({' '.join(value.words)})" if value.words else " "


# ---------------------------------------------------------------- fish

_FISH = """# Completion of gpu_monitor for fish 3.
function __gpu_monitor_list
    set -l before (string replace -r '[^,]*$' '' -- (commandline -ct))
    printf '%s\\n' $before$argv
end

# True where the words so far name this command, values of options not counted.
function __gpu_monitor_at
    set -l at ''
    set -l skip ''
    for word in (commandline -opc)[2..-1]
        if test -n "$skip"
            set skip ''
            continue
        end
        switch "$at|$word"
            case {takes}
                set skip yes
{steps}
        end
    end
    test "$at" = "$argv"
end

complete -c gpu_monitor -f
"""


def fish(root: Command) -> str:
    """A script for fish."""
    takes = " ".join(f"'{at}|{name}'" for at, name in _takers(root))
    steps = "\n".join(
        f"            case '{at}|{name}'\n                set at '{to}'" for at, name, to in _steps(root)
    )
    lines = [_FISH.replace("{takes}", takes).replace("{steps}", steps)]
    for path, command in _walk(root):
        condition = f"-n {_fish_text('__gpu_monitor_at ' + _fish_text(' '.join(path)))}"
        for child in command.below:
            lines.append(f"complete -c gpu_monitor {condition} -a {child.name} -d {_fish_text(child.text)}")
        lines += [f"complete -c gpu_monitor {condition} {_fish_option(option)}" for option in command.options]
        for value in command.positionals:
            given = "-F" if value.kind is Kind.FILE else f"-a {_fish_text(' '.join(value.words))}"
            lines.append(f"complete -c gpu_monitor {condition} {given}")
    return "\n".join([*lines, *(f"complete -c {name} -w gpu_monitor" for name in PROGRAMS[1:]), ""])


def _fish_option(option: Option) -> str:
    parts = []
    for name in option.names:
        if name.startswith("--"):
            parts.append(f"-l {name[2:]}")
        else:
            parts.append(f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}")
    value = option.value
    if value is not None and not value.is_optional:
        if value.kind is Kind.FILE:
            parts.append("-r -F")
        elif value.kind is Kind.LIST:
            parts.append(f"-x -a {_fish_text('(__gpu_monitor_list ' + ' '.join(value.words) + ')')}")
        else:
            parts.append(f"-x -a {_fish_text(' '.join(value.words))}" if value.words else "-x")
    return " ".join([*parts, f"-d {_fish_text(option.text)}"])


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

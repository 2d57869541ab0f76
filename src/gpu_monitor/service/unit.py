"""The text of the systemd unit: one template, three renderings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpu_monitor.service.template import fill

SHIPPED_PROGRAM = "/usr/local/bin/gpu_monitor"


def shipped_unit() -> str:
    """The unit in scripts/: for machines where nothing was prepared but the program itself."""
    values = {"exec_start": SHIPPED_PROGRAM, "wanted_by": "multi-user.target"}
    return fill(_template(), {"shipped", "system", "dynamic"}, values)


def system_unit(argv: Sequence[str], is_named: bool, extra_paths: Sequence[Path]) -> str:
    """The unit of the whole machine, with a lasting user of its own (`is_named`) or a dynamic one."""
    blocks = {"installed", "system", "named" if is_named else "dynamic"}
    values = {"exec_start": exec_line(argv), "wanted_by": "multi-user.target"}
    if extra_paths:
        blocks.add("extra_paths")
        values["extra_paths"] = exec_line([str(path) for path in extra_paths])
    return fill(_template(), blocks, values)


def user_unit(argv: Sequence[str], state: Path) -> str:
    """The unit of one user's own service manager."""
    values = {
        "exec_start": exec_line(argv),
        "wanted_by": "default.target",
        "state": str(state).replace("%", "%%"),
    }
    return fill(_template(), {"installed", "user"}, values)


def exec_line(argv: Sequence[str]) -> str:
    """Words as systemd reads them back: quoted where needed, with its own signs doubled."""
    return " ".join(_word(word) for word in argv)


def _word(word: str) -> str:
    doubled = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{doubled}"' if any(sign in word for sign in " \t\"'\\;") or not word else doubled


def _template() -> str:
    return (Path(__file__).with_name("units") / "gpu-monitor.service.template").read_text(encoding="utf-8")

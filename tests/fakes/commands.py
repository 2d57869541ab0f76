"""A stand-in for the operating system's commands: it remembers what was run and answers as told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpu_monitor.service.commands import Answer


class FakeCommands:
    """Answers by the longest known beginning of a command line; 0 and nothing where none is known."""

    def __init__(self, answers: Mapping[str, Answer] | None = None, missing: Sequence[str] = ()) -> None:
        self.answers = dict(answers or {})
        self.missing = set(missing)
        self.ran: list[str] = []

    def run(self, argv: Sequence[str]) -> Answer:
        """Remember the command and answer."""
        line = " ".join(argv)
        self.ran.append(line)
        if argv[0] in self.missing:
            return Answer(127, error=f"{argv[0]}: No such file or directory")
        known = [start for start in self.answers if line.startswith(start)]
        return self.answers[max(known, key=len)] if known else Answer(0)

    def find(self, name: str) -> str | None:
        """A made-up path for every command that is not missing."""
        return None if name in self.missing else f"/usr/bin/{name}"

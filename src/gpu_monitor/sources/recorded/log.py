"""One recorded log: opened, recognised, looked at, read."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.csv import CsvReader
from gpu_monitor.sources.recorded.dmon import DmonReader
from gpu_monitor.sources.recorded.lines import encoding_of, read_lines
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.sniff import Format, sniff
from gpu_monitor.sources.recorded.survey import Survey, survey
from gpu_monitor.sources.recorded.xml import XmlReader

_HEAD = 1 << 16
STDIN = "-"


class RecordedLog:
    """A log that can be read more than once, from its first row to its last, in constant memory.

    `path` None is standard input, which is copied to an unnamed temporary file first. LogUnreadable,
    from every method, where the file is no log that is known or its columns cannot be true.
    """

    def __init__(self, path: Path | None, options: ReadOptions, stdin: BinaryIO | None = None) -> None:
        self.name = STDIN if path is None else str(path)
        self.options = options
        self._file = _spooled(stdin or sys.stdin.buffer) if path is None else _opened(path)
        # A pipe, stdin too, has no time of its own.
        self._written_at = None if path is None else path.stat().st_mtime
        head = self._file.read(_HEAD)
        self.size = self._file.seek(0, 2)
        text = head.decode(encoding_of(head), errors="replace")
        try:
            self.format = Format.CSV if options.columns else sniff(self.name, head, text)
        except LogUnreadable:
            self.close()
            raise

    def rows(self, findings: Findings) -> Iterator[RecordedRow]:
        """Every row that can be taken, in the order of the file; what cannot goes into `findings`."""
        self._file.seek(0)
        return self._reader(findings).rows(read_lines(self._file))

    def survey(self) -> Survey:
        """What is in the log; LogUnreadable where its header does not match its values."""
        self._file.seek(0)
        findings = Findings()
        reader = self._reader(findings)
        return survey(self.name, reader.rows(read_lines(self._file)), lambda: reader.layouts, findings)

    @property
    def position(self) -> int:
        """Bytes read so far, for a progress bar beside `size`."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reader(self, findings: Findings) -> CsvReader | DmonReader | XmlReader:
        if self.format is Format.XML:
            return XmlReader(self.name, self.options, findings, self._written_at)
        if self.format is Format.DMON:
            return DmonReader(self.name, self.options, findings)
        return CsvReader(self.name, self.options, findings)


def _opened(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise LogUnreadable(f"{path} is a folder", "Name the files in it.")
        if not path.is_file() and path.exists():
            with path.open("rb") as pipe:
                return _spooled(pipe)
        return path.open("rb")
    except OSError as error:
        raise LogUnreadable(
            f"cannot read {path}: {error.strerror}", "Check its name, owner and mode."
        ) from error


def _spooled(source: BinaryIO) -> BinaryIO:
    """`source` as a file that can be read again."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the log
    shutil.copyfileobj(source, copy, 1 << 20)
    copy.seek(0)
    return copy

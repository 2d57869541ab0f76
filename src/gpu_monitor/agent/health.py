"""What a store tells of its agent's health: the checks of `gpu_monitor doctor` on what is recorded. Reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gpu_monitor import __version__
from gpu_monitor.agent.ask import Asked, interval_of
from gpu_monitor.agent.usage import By, Question, usage
from gpu_monitor.core.outcome import Verdict
from gpu_monitor.core.times import format_duration, format_time
from gpu_monitor.storage.database import Reader
from gpu_monitor.storage.locks import agent_path, holder, is_held

DAY = 86400.0
_COVERED = 0.99
_OWED_SECONDS = 3 * 3600.0
"""An hour goes out within 5 minutes; one that still waits after three did not get through."""


class Level(Enum):
    """How a check came out; a problem makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, what was found, and what to do next (None: nothing)."""

    name: str
    level: Level
    text: str
    advice: str | None = None


def ok(name: str, text: str, advice: str | None = None) -> Check:
    """A check that came out well."""
    return Check(name, Level.OK, text, advice)


def warning(name: str, text: str, advice: str) -> Check:
    """Something a person should know of; nothing is lost."""
    return Check(name, Level.WARNING, text, advice)


def problem(name: str, text: str, advice: str) -> Check:
    """Something that a person must mend."""
    return Check(name, Level.PROBLEM, text, advice)


def size_text(size: float) -> str:
    """Bytes for people: `44.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# ---------------------------------------------------------------- the agent


def check_agent(reader: Reader, now: float) -> Iterator[Check]:
    """Whether an agent runs, and when it last stored something."""
    runs = reader.rows("SELECT pid, version, started, ended_how FROM runs ORDER BY id DESC LIMIT 1")
    held = is_held(agent_path(reader.path))
    pid, version, started, ended = runs[0] if runs else (None, None, None, None)
    is_running = held if held is not None else ended is None and _exists(pid)
    start = "Start it: gpu_monitor, or as a service: sudo gpu_monitor service install"
    if not is_running:
        last = f"; the last one {ended or 'was killed'}" if runs else ""
        yield problem("agent", f"none runs on this store{last}", start)
    elif held is None:
        yield ok("agent", f"seems to run (pid {pid}); only its own user can be sure")
    else:
        pid = holder(agent_path(reader.path)) or pid
        since = f" since {format_time(round(started))}" if started is not None else ""
        yield ok("agent", f"runs, pid {pid}{since}")
    if is_running and version not in (None, __version__):
        text = f"the agent that runs is {version}, installed is {__version__}"
        yield warning("version", text, "Restart the agent.")
    yield _last_collection(reader, now, bool(is_running))


def _exists(pid: int | None) -> bool:
    """Whether a process of that number exists; False where that cannot be told."""
    return pid is not None and Path("/proc", str(pid)).exists()


def _last_collection(reader: Asked, now: float, is_running: bool) -> Check:
    end = reader.value("SELECT value FROM meta WHERE key = 'data_end'")
    if end is None:
        return warning("last collection", "none yet", "Wait one interval, then ask again.")
    age, interval = now - float(end), interval_of(reader)
    text = f"{format_time(round(float(end)))}, {format_duration(max(0.0, age))} ago"
    if age < -interval:
        return warning(
            "last collection",
            f"{format_time(round(float(end)))} lies in the future: the clock was put back",
            "Rows of the repeated hours are kept beside the old ones; set the clock right (NTP).",
        )
    if is_running and age > 2 * interval + 60 and not _is_played(reader):
        advice = "The agent runs and stores nothing: its log says why (logging.file, or journalctl)."
        return problem("last collection", text, advice)
    return ok("last collection", text)


def _is_played(reader: Asked) -> bool:
    return bool(
        reader.value("SELECT 1 FROM gpus WHERE node = 1 AND source IN ('simulated', 'replay') LIMIT 1")
    )


# ---------------------------------------------------------------- what was recorded


def check_records(reader: Reader, now: float) -> Iterator[Check]:
    """The last 24 hours: coverage, gaps, events; and what the size cap ever cost."""
    if _is_played(reader):
        advice = "Real GPUs need another database.file."
        yield warning("source", "this store holds SIMULATED or replayed GPUs, not this machine's", advice)
    yield _coverage(reader, now)
    yield _gaps(reader, now)
    yield _events(reader, now)
    lost = reader.rows("SELECT cause, sum(rows) FROM losses GROUP BY cause HAVING sum(rows) > 0")
    if lost:
        text = ", ".join(f"{_count(count, 'row')} ({cause})" for cause, count in lost)
        yield warning("losses", f"dropped for ever: {text}", "Raise database.max_mb, or keep fewer days.")
    else:
        yield ok("losses", "no row was ever dropped for want of room")


def _coverage(reader: Reader, now: float) -> Check:
    first = reader.value("SELECT min(started) FROM runs")
    if first is None or first >= now:
        return ok("coverage", "nothing recorded yet")
    since = max(now - DAY, float(first))
    interval = interval_of(reader)
    closed = now // interval * interval  # the interval that runs is stored at its end
    if closed - since < interval:
        return ok("coverage", "the first interval is still running")
    found = usage(reader, Question(1, since, closed, By.NODE)).totals
    if found:
        recorded = sum(total.tally.recorded for total in found)
        share = min(1.0, recorded / sum(total.possible for total in found))
        what = "of GPU time"
    else:
        seconds = reader.value(
            "SELECT sum(seconds) FROM hosts WHERE start >= ? AND start < ?", (since, closed)
        )
        share, what = min(1.0, float(seconds or 0.0) / (closed - since)), "of the machine's time (no GPU)"
    text = f"{share:.1%} {what} recorded in the last {format_duration(closed - since)}"
    if share < _COVERED:
        return warning("coverage", text, "The gaps below say why.")
    return ok("coverage", text)


def _gaps(reader: Asked, now: float) -> Check:
    rows = reader.rows(
        'SELECT cause, uid, "end" IS NULL, min(coalesce("end", ?), ?) - max(start, ?) FROM gaps'
        ' WHERE node = 1 AND start < ? AND coalesce("end", ?) > ?',
        (now, now, now - DAY, now, now, now - DAY),
    )
    if not rows:
        return ok("gaps", "none in the last 24 hours")
    seconds: dict[str, float] = {}
    for cause, uid, _, lasted in rows:
        label = f"{cause} ({uid})" if uid else str(cause)
        seconds[label] = seconds.get(label, 0.0) + max(0.0, lasted)
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    text = ", ".join(f"{label} {format_duration(lasted)}" for label, lasted in longest[:3])
    more = f" and {len(longest) - 3} more" if len(longest) > 3 else ""
    lasting = [uid for _, uid, is_open, _ in rows if is_open and uid]
    if lasting:
        advice = f"{lasting[0]} gives nothing now: see `dmesg | grep -i xid`; a reset or reboot may help."
        return problem("gaps", f"last 24 hours: {text}{more}", advice)
    return warning(
        "gaps", f"last 24 hours: {text}{more}", "Each names its cause; nothing in them can be had."
    )


def _events(reader: Asked, now: float) -> Check:
    rows = reader.rows(
        "SELECT kind, count(*), max(time), message FROM events WHERE time >= ? AND time <= ?"
        " AND severity NOT IN ('info', 'debug') GROUP BY kind ORDER BY max(time) DESC",
        (now - DAY, now),
    )
    if not rows:
        return ok("events", "nothing remarkable in the last 24 hours")
    counts = ", ".join(f"{count} {kind}" for kind, count, _, _ in rows)
    _, _, time, message = rows[0]
    return warning("events", f"last 24 hours: {counts}", f"Last: {format_time(round(time))} {message}")


# ---------------------------------------------------------------- deliveries


def check_deliveries(reader: Asked, now: float, has_server: bool) -> Iterator[Check]:
    """What is owed to the server, what it refused, and the last error."""
    counts: dict[str, int] = dict(
        reader.rows("SELECT state, count(*) FROM reports WHERE state <> 'replaced' GROUP BY state")
    )
    if not has_server:
        unsent = counts.get("pending", 0)
        yield ok("deliveries", f"no server is configured; {_count(unsent, 'report')} kept for one")
        return
    oldest = reader.value("SELECT min(period + period_seconds) FROM reports WHERE state = 'pending'")
    pending, sent = counts.get("pending", 0), counts.get("sent", 0)
    error = _last_error(reader)
    if pending and _is_refused(reader):
        text = f"{sent} delivered, {pending} waiting: the server takes nothing from us"
        advice = "Check server.url, server.token_file and server.contract_number; doctor --network asks the server."
        yield problem("deliveries", text, f"{error}\n{advice}")
    elif oldest is not None and now - oldest > _OWED_SECONDS:
        text = f"{_count(pending, 'report')} waiting, the oldest for {format_duration(now - oldest)}; {sent} delivered"
        yield warning(
            "deliveries", text, error or "None was tried yet: does the agent run, without --offline?"
        )
    else:
        yield ok("deliveries", f"{sent} delivered, {pending} waiting", error)
    for state, meaning in (
        ("rejected", "the server will not take it"),
        ("parked", "ten attempts failed"),
    ):
        if counts.get(state):
            advice = "gpu_monitor -ls names them; mend the cause, then: gpu_monitor resend"
            yield problem(state, f"{_count(counts[state], 'report')}: {meaning}", advice)


def _is_refused(reader: Asked) -> bool:
    """Whether the last attempt that is over was refused as one of ours (401, 403, 404 ...)."""
    last = reader.value("SELECT verdict FROM attempts WHERE verdict IS NOT NULL ORDER BY id DESC LIMIT 1")
    return bool(last == Verdict.REFUSED.value)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _last_error(reader: Asked) -> str | None:
    rows = reader.rows("SELECT started, error FROM attempts WHERE error IS NOT NULL ORDER BY id DESC LIMIT 1")
    return f"Last error: {format_time(round(rows[0][0]))} {rows[0][1]}" if rows else None


def check_sqlite() -> Check:
    """The linked SQLite library."""
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= (3, 51, 3):
        return ok("sqlite", version)
    text = f"{version} has the WAL-reset bug (fixed in 3.51.3); it needs two that write or checkpoint at once"
    return ok("sqlite", f"{text}, and here one at a time does, under a file lock")

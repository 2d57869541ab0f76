"""What is told of an alert: one frozen record, stored as JSON until it is delivered, and its words."""

from __future__ import annotations

import msgspec

from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.alerts import Alert, Moment


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that fired or is resolved. `id` is the alert's; `id` and `moment` together name one notice for ever.

    Times are ISO 8601 in UTC; what is unknown is None.
    """

    id: str
    moment: str
    rule: str
    severity: str
    node: str | None
    hostname: str | None
    gpu: str | None
    gpu_name: str | None
    contract_number: str | None
    message: str
    advice: str | None
    value: float | None
    since: str
    fired: str | None
    resolved: str | None
    simulated: bool
    test: bool = False
    experiment: str | None = None
    experiment_name: str | None = None

    @property
    def title(self) -> str:
        """One line: what, where; simulated GPUs and tests say so first."""
        marks = ("[TEST] " if self.test else "") + ("[SIMULATED] " if self.simulated else "")
        word = "RESOLVED" if self.moment == "resolved" else self.severity.upper()
        if self.experiment is not None:
            return f"{marks}{word}: {self.rule} of run {self.experiment_name or ''} {self.experiment}"
        where = self.hostname or self.node or "the server"
        gpu = f" {self.gpu_name or 'GPU'} {self.gpu}" if self.gpu else ""
        return f"{marks}{word}: {self.rule} on {where}{gpu}"

    @property
    def text(self) -> str:
        """Some lines for people: what, since when, what to do, and the id."""
        lines = [
            self.message,
            f"since {self.since}" + (f", resolved {self.resolved}" if self.resolved else ""),
        ]
        if self.advice and self.moment == "fired":
            lines.append(f"What to do: {self.advice}")
        lines.append(f"alert {self.id}")
        return "\n".join(lines)


class Names(msgspec.Struct, frozen=True):
    """How the subject of an alert is called."""

    node: str | None = None
    hostname: str | None = None
    gpu_name: str | None = None
    contract_number: str | None = None
    experiment: str | None = None
    experiment_name: str | None = None


_decoder = msgspec.json.Decoder(Notice)


def make_notice(alert: Alert, moment: Moment, names: Names, advice: str | None) -> str:
    """The JSON of what is told of an alert."""
    notice = Notice(
        id=alert.id, moment=moment, rule=alert.rule, severity=alert.severity, node=names.node,
        hostname=names.hostname, gpu=alert.uid, gpu_name=names.gpu_name, contract_number=names.contract_number,
        message=alert.message, advice=advice, value=alert.value, since=_stamp(alert.since) or "",
        fired=_stamp(alert.fired), resolved=_stamp(alert.resolved) if moment == "resolved" else None,
        simulated=alert.simulated, experiment=names.experiment, experiment_name=names.experiment_name,
    )  # fmt: skip
    return msgspec.json.encode(notice).decode()


def read_notice(text: str) -> Notice:
    """The notice in its JSON."""
    return _decoder.decode(text)


def _stamp(time: float | None) -> str | None:
    return None if time is None else format_time(round(time, 3))

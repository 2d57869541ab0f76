"""Senders of a soak: each delivers its nodes' reports, again and again until it is told that they are safe."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import socket
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_monitor.core.clock import SystemClock
from tests.measure.server_ledger import Ledger, Parcel
from tests.server.posts import encode, headers_of, iso, join, make_entry, make_report

_FIRST_HOUR = int(SystemClock().now()) // 3600 - 8_500
"""Nearly a year ago: older ones are not taken."""
_PAUSE = 0.05
_TIMEOUT = 10.0
_NODES = uuid.UUID("5d8f6c1e-52b1-4b1c-9f0f-6f1f5a6f4b11")


@dataclass(frozen=True)
class Targets:
    """Where servers listen on this machine, each time they are started."""

    ports: tuple[int, ...]

    @classmethod
    def free(cls, count: int) -> Targets:
        """Ports that are free now."""
        with contextlib.ExitStack() as stack:
            taken = [
                stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
                for _ in range(count)
            ]
            return cls(tuple(one.getsockname()[1] for one in taken))


class Unanswered(Exception):
    """The server was gone, or had no time: nothing is known of what was sent."""


class Sender(threading.Thread):
    """Delivers reports of its own nodes; remembers every answer in the ledger."""

    def __init__(
        self,
        number: int,
        count: int,
        targets: Targets,
        tokens: dict[str, str],
        ledger: Ledger,
        chance: random.Random,
    ) -> None:
        super().__init__(name=f"sender-{number}", daemon=True)
        self.ledger, self._targets, self._chance = ledger, targets, chance
        self.trouble: Exception | None = None
        self._nodes = [str(uuid.uuid5(_NODES, f"{number}-{place}")) for place in range(count)]
        self._next = dict.fromkeys(self._nodes, _FIRST_HOUR)
        # Every second node shows the token for enrolling, and from its first answer on its own.
        self._tokens = {
            node: tokens["enrol" if place % 2 else "all"] for place, node in enumerate(self._nodes)
        }
        self._ending, self._moment = threading.Event(), threading.Event()  # nobody sets the second one
        self._delivered: list[Parcel] = []

    def finish(self) -> None:
        """End once what was begun is delivered."""
        self._ending.set()

    def run(self) -> None:
        """Deliver until told to finish."""
        try:
            while not self._ending.is_set():
                self._step()
        except (RuntimeError, LookupError, ValueError) as error:  # what an answer that must not be leads to
            self.trouble = error
            self.ledger.complain(f"a sender ended: {error!r}")

    def _step(self) -> None:
        what, node = self._chance.random(), self._chance.choice(self._nodes)
        if what < 0.2 and self._delivered:
            self._deliver([self._chance.choice(self._delivered[-50:])], repeats=True)
        elif what < 0.35 and (older := self._of(node)):
            base = self._chance.choice(older)
            self._deliver([self._make(node, base.hour, base.revision + 1)])
        elif what < 0.55:
            self._deliver([self._fresh(node) for _ in range(self._chance.randint(2, 8))])
        else:
            self._deliver([self._fresh(node)])

    def _of(self, node: str) -> list[Parcel]:
        """This node's newest revisions, of the last hours."""
        newest = {parcel.hour: parcel for parcel in self._delivered if parcel.node == node}
        return list(newest.values())[-20:]

    def _fresh(self, node: str) -> Parcel:
        hour = self._next[node]
        self._next[node] += 1
        return self._make(node, hour, 1)

    def _make(self, node: str, hour: int, revision: int) -> Parcel:
        """A report that differs from every other in its values, with a row of each kind now and then."""
        chance, start = random.Random(f"{node}{hour}{revision}"), hour * 3600.0
        entries = [_entry(node, number, chance) for number in range(1, 1 + chance.randint(1, 8))]
        gap = {
            "uid": None,
            "start": iso(start),
            "end": iso(start + 90),
            "seconds": 90,
            "cause": "agent killed",
            "detail": None,
        }
        event = {
            "time": iso(start + 7), "uid": entries[0]["uid"], "kind": "xid", "severity": "error",
            "message": f"Xid 79, {chance.random()}", "detail": {"code": 79},
        }  # fmt: skip
        process = {
            "uid": entries[0]["uid"], "pid": chance.randrange(1, 1 << 22), "kind": "compute", "first_seen": iso(start),
            "last_seen": iso(start + 60), "ended": True, "start_ticks": 1 << 40, "boot_id": None, "ns_pid": None,
            "user": "ann", "command": "python", "container": None, "job": None, "experiment_id": None,
            "memory": 5, "memory_max": 1 << 33,
        }  # fmt: skip
        made = make_report(
            node, hour, revision, gpus=entries,
            gaps=[gap] * chance.randint(0, 1), events=[event] * chance.randint(0, 2), processes=[process] * chance.randint(0, 2),
        )  # fmt: skip
        return Parcel(node, hour, revision, made["report_id"], encode(made))

    def _deliver(self, parcels: Sequence[Parcel], *, repeats: bool = False) -> None:
        """Send the same bytes until every one of them is answered."""
        left = list(parcels)
        while left:
            try:
                answers = self._post(left)
            except Unanswered:
                self._moment.wait(_PAUSE)
                continue
            for parcel, answer in zip(left, answers, strict=True):
                if token := answer.get("node_token"):
                    self._tokens[parcel.node] = token
                self.ledger.note(parcel, answer, repeats)
                if not repeats:
                    self._delivered.append(parcel)
            left = []

    def _post(self, parcels: Sequence[Parcel]) -> list[dict[str, Any]]:
        path = "/api/metrics" if len(parcels) == 1 else "/api/metrics/batch"
        body = parcels[0].body if len(parcels) == 1 else join(*(parcel.body for parcel in parcels))
        more = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._tokens[parcels[0].node]}",
        }
        if self._chance.random() < 0.5:
            body = gzip.compress(body, 1)
            more["Content-Encoding"] = "gzip"
        more |= headers_of(body)
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._chance.choice(self._targets.ports), timeout=_TIMEOUT
        )
        try:
            connection.request("POST", path, body, more)
            answer = connection.getresponse()
            status, data = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered from error
        finally:
            connection.close()
        if status in (429, 500, 502, 503, 504, 507):
            if status != 503:
                self.ledger.complain(f"answered with {status}: {data[:300]!r}")
            raise Unanswered
        if status != 200:
            raise RuntimeError(f"{path} answered {status}: {data[:500]!r}")
        found = json.loads(data)
        answers = [found] if len(parcels) == 1 else found["answers"]
        wrong = [one for one in answers if one.get("status", 200) != 200]
        if wrong:
            raise RuntimeError(f"refused in a batch: {wrong[:3]}")
        return list(answers)


def _entry(node: str, number: int, chance: random.Random) -> dict[str, Any]:
    temperature, busy = chance.randint(300, 800) / 10, chance.randint(0, 1000) / 10
    return make_entry(
        number, uid=f"GPU-{node}-{number}", temperature=temperature, temperature_min=temperature - 5,
        temperature_max=temperature + 5, gpu_utilization=busy, gpu_utilization_min=0, gpu_utilization_max=100,
        energy=chance.randint(0, 2_000_000),
    )  # fmt: skip

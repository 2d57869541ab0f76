# SPDX-License-Identifier: MIT
"""The experiments of a server, as `gpu_monitor experiments --server` asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from gpu_monitor.core.errors import GpuMonitorError, NothingFound
from gpu_monitor.sinks.exchange import Failure
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.compared import ask_server
from gpu_monitor.training.run_terms import Listing, Point, Wanted, columns_of
from gpu_monitor.wire.training import number_of

_PAGE = 100
_POINTS = 5_000
"""Of one answer: a point with three numbers takes some 80 bytes, and an answer holds 1 MiB."""


class RunsThere:
    """The experiments that a server shows to whoever holds the token."""

    def __init__(self, server: ExperimentServer) -> None:
        self._server = server
        self.where = server.name

    def list(self, wanted: Wanted) -> Listing:
        """Those that are wanted, the newest first where nothing else is said."""
        asked: list[tuple[str, Any]] = [("tag", tag) for tag in wanted.tags] + [
            ("status", one) for one in wanted.status
        ]
        named = {
            "project": wanted.project,
            "text": wanted.text,
            "where": wanted.where,
            "sort": wanted.sort,
            "order": wanted.order,
        }
        asked += [(name, value) for name, value in named.items() if value is not None]
        asked += [("columns", words) for words in columns_of(wanted)]
        asked.append(("archived", "all" if wanted.archived is None else str(wanted.archived).lower()))
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            size = min(_PAGE, wanted.limit - len(items))
            more = [("cursor", cursor)] if cursor is not None else []
            page = self._get(f"/api/experiments?{urlencode([*asked, ('limit', size), *more])}")
            items += page["items"]
            cursor = page["next"]
            if cursor is None or len(items) >= wanted.limit:
                return Listing(items, cursor is not None, page.get("hint"))

    def show(self, name: str) -> dict[str, Any]:
        """Everything but points, output and files of one experiment. NothingFound where there is none."""
        found: dict[str, Any] = self._get(f"/api/experiments/{quote(name, safe='')}")
        said = None if found["id"] == name else f"{name} is {found['id']}"
        return {**found, "media": list(self._media(found["id"])), "said": said}

    def _media(self, experiment_id: str) -> Iterator[dict[str, Any]]:
        """Every picture and file, the first that was logged first."""
        cursor: str | None = ""
        while cursor is not None:
            more = f"&cursor={quote(cursor, safe='')}" if cursor else ""
            page = self._get(f"/api/experiments/{quote(experiment_id)}/media?limit=1000{more}")
            yield from page["items"]
            cursor = page["next"]

    def points(self, name: str, metrics: tuple[str, ...]) -> Iterator[Point]:
        """Every point, metric by metric in order of steps; of the named metrics, or of all."""
        found = self._get(f"/api/experiments/{quote(name, safe='')}")
        for metric in metrics or [one["name"] for one in found["metrics"]]:
            yield from self._stretch(found["id"], metric, -(2**63), 2**63 - 1)

    def _stretch(self, experiment_id: str, metric: str, start: int, stop: int) -> Iterator[Point]:
        """The points of steps from `start` up to before `stop`: halved until an answer has them all."""
        asked = {"names": metric, "from": start, "to": stop, "max_points": _POINTS}
        (told,) = self._get(f"/api/metrics/{quote(experiment_id)}?{urlencode(asked)}")["series"]
        if not told["thinned"] or stop - start <= 1:
            for x, value in zip(told["x"], told["value"], strict=True):
                yield Point(metric, int(x), None, number_of(value))
            return
        low, high = int(min(told["x"])), int(max(told["x"]))
        middle = (max(start, low) + min(stop, high + 1)) // 2
        if not start < middle < stop:
            middle = start + (stop - start) // 2
        yield from self._stretch(experiment_id, metric, start, middle)
        yield from self._stretch(experiment_id, metric, middle, stop)

    def archive(self, name: str, is_archived: bool) -> str:
        """Put an experiment away, or take it back; which one it was."""
        told = self._ask("PATCH", f"/api/experiments/{quote(name, safe='')}", {"archived": is_archived})
        return str(told["id"])

    def about(self, name: str) -> tuple[str, str, bool]:
        """The id that a name means, what would be gone with it, in words, and whether it is archived."""
        found = self._get(f"/api/experiments/{quote(name, safe='')}")
        what = (
            f"{found['name']} ({found['id']}) with {found['points']:,} points and its files, on {self.where}"
        )
        return str(found["id"]), what, bool(found["archived"])

    def delete(self, name: str) -> str:
        """Remove an archived experiment with its files."""
        self._ask("DELETE", f"/api/experiments/{quote(name, safe='')}", None)
        return name

    def close(self) -> None:
        """Let go of the connection."""
        self._server.close()

    def _get(self, path: str) -> Any:
        return ask_server(self._server, path)

    def _ask(self, method: str, path: str, body: object) -> Any:
        reply = self._server.ask(method, path, body)
        if isinstance(reply, Failure):
            raise GpuMonitorError(
                f"{self.where} does not answer: {reply.text}", "Is it running, and its address right?"
            )
        try:
            told = json.loads(reply.data or b"{}")
        except ValueError:
            told = {}
        if 200 <= reply.status < 300:
            return told
        words = told.get("detail") or told.get("title") or "no reason given"
        if reply.status == 404:
            raise NothingFound(f"{self.where}: {words}")
        raise GpuMonitorError(f"{self.where}: {words} (HTTP {reply.status})")

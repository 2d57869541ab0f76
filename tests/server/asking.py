"""A real server on the known fleet, once for each kind of database, for the tests of what it answers."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.engine import open_store
from tests.server.known import Known, make_known
from tests.server.rig import Server, serving


@dataclass
class Asked:
    """The server and what it was given."""

    server: Server
    known: Known

    def get(self, path: str, token: str | None = None, **query: Any) -> Any:
        """The JSON of a 200; `since` and `to` count hours from the first, other values stand as they are."""
        answer = self.server.ask("GET", self.url(path, **query), token=token)
        assert answer.status == 200, answer.body
        return answer.json

    def csv(self, path: str, **query: Any) -> list[dict[str, str]]:
        """The rows of its CSV."""
        answer = self.server.ask("GET", self.url(path, **query, format="csv"))
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        return list(csv.DictReader(io.StringIO(answer.body.decode())))

    def url(self, path: str, **query: Any) -> str:
        """A path with its query."""
        for name, given in (("since", "from"), ("to", "to")):
            if isinstance(query.get(name), (int, float)):
                query[given] = self.stamp(query.pop(name))
        return f"{path}?{urlencode(query, doseq=True)}" if query else path

    def stamp(self, hours: float) -> str:
        """A moment, counted in hours from the first, as the API writes it."""
        return format_time(self.known.at(hours))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """The server on each kind of database."""
    folder = tmp_path_factory.mktemp("asked")
    url = _database(request, folder)
    store = open_store(url)
    try:
        known = make_known(store, float(int(time.time())))
    finally:
        store.close()
    with serving(folder, database=url) as server:
        yield Asked(server, known)


def _database(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "server.db")
        return f"sqlite:///{folder / 'server.db'}"
    cluster = request.getfixturevalue("cluster")
    return str(cluster.create(request.getfixturevalue("postgresql_template")))

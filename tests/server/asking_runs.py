"""A real server on the known experiments, once for each kind of database."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.engine import open_store
from tests.server.rig import Answer, Server, serving
from tests.server.runs import make_runs


@dataclass
class Runs:
    """The server, and when its first experiment began."""

    server: Server
    begin: float

    def ask(self, path: str, token: str | None = None, **query: Any) -> Answer:
        """The answer to a GET; `from_` is `from`."""
        named = {name.rstrip("_"): value for name, value in query.items()}
        url = f"{quote(path)}?{urlencode(named, doseq=True)}" if named else quote(path)
        return self.server.ask("GET", url, token=token)

    def get(self, path: str, token: str | None = None, **query: Any) -> Any:
        """The JSON of a 200."""
        answer = self.ask(path, token, **query)
        assert answer.status == 200, answer.body
        return answer.json

    def refused(self, path: str, status: int = 422, **query: Any) -> str:
        """Why it was refused."""
        answer = self.ask(path, **query)
        assert answer.status == status, (answer.status, answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
        return str(answer.json["detail"])

    def csv(self, path: str, **query: Any) -> list[dict[str, str]]:
        """The rows of its CSV."""
        answer = self.ask(path, format="csv", **query)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        return list(csv.DictReader(io.StringIO(answer.body.decode())))

    def ids(self, **query: Any) -> list[str]:
        """The experiments of a list."""
        return [one["id"] for one in self.get("/api/experiments", **query)["items"]]

    def stamp(self, seconds: float) -> str:
        """A moment, counted in seconds from the first experiment's start."""
        return format_time(self.begin + seconds)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The server on each kind of database."""
    folder = tmp_path_factory.mktemp("runs")
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "server.db")
        url = f"sqlite:///{folder / 'server.db'}"
    else:
        cluster = request.getfixturevalue("cluster")
        url = str(cluster.create(request.getfixturevalue("postgresql_template")))
    now = float(int(time.time()))
    store = open_store(url)
    try:
        make_runs(store, now - 86_400, now)
    finally:
        store.close()
    with serving(folder, database=url) as server:
        yield Runs(server, now - 86_400)

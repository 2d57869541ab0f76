"""The real server takes experiments: exactly once through kills and rivals, from the hostile, and shows them as they come."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import random
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from websockets.sync.client import ClientConnection, connect

from gpu_monitor.server.store.engine import open_store
from gpu_monitor.server.store.schema_experiments import experiments, points, segment_chunks, series
from gpu_monitor.server.store.segment_chunks import unpack
from gpu_monitor.wire.training import Media, Note, Params, Points, Status, Tag, Text, encode
from tests.server.postgres import Cluster
from tests.server.rig import PATIENCE, Answer, Server, serving
from tests.server.segments import BOOT, RUN, SEGMENT, digest, header, names, put
from tests.server.segments import points as lines_of

BEGIN = header() + names("loss", "lr")
KILLS = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server
        assert server.process.poll() is None, server.said
        assert "Traceback" not in server.said


@pytest.fixture
def token(server: Server) -> str:
    return token_of(server)


def token_of(server: Server, contract: str = "12345") -> str:
    return server.token("--contract", contract, "--scope", "experiment:write", "--scope", "read")


def held(database: str, run: str = RUN) -> tuple[bytes, list[tuple[int, int, float]]]:
    """The bytes and the points (series, ordinal, value) that a database holds of an experiment with one segment."""
    with contextlib.closing(open_store(database)) as store, store.read() as connection:
        number = connection.execute(select(experiments.c.id).where(experiments.c.uid == run)).scalar()
        chunks = connection.execute(
            select(segment_chunks).order_by(segment_chunks.c.segment, segment_chunks.c.start)
        ).fetchall()
        rows = connection.execute(
            select(points.c.series, points.c.ordinal, points.c.value)
            .join(series, series.c.id == points.c.series)
            .where(series.c.experiment == number)
            .order_by(points.c.series, points.c.ordinal)
        ).fetchall()
    parts = [unpack(bytes(one.data), one.length) for one in chunks]
    return b"".join(part for part in parts if part is not None), [tuple(row) for row in rows]


def long_segment(count: int = 2000) -> bytes:
    draw = random.Random(5)
    return BEGIN + lines_of(*((step, (draw.random(), 0.001 * step)) for step in range(count)))


class Sender:
    """Delivers a segment in random pieces until all of it was acknowledged, as an uploader does, over any servers."""

    def __init__(self, token: str, whole: bytes, seed: int) -> None:
        self.token, self.whole, self.draw = token, whole, random.Random(seed)
        self.edges = [0]
        for line in whole.splitlines(True):
            self.edges.append(self.edges[-1] + len(line))
        self.offset = 0
        self.port = 0
        self.up, self.stop = threading.Event(), threading.Event()
        self.news = threading.Semaphore(0)
        self.strange: list[str] = []

    def run(self) -> None:
        while self.offset < len(self.whole) and not self.stop.is_set():
            self.up.wait()
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._send()

    def _send(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            while self.offset < len(self.whole) and not self.stop.is_set():
                at = self.edges.index(self.offset)
                stop = self.edges[min(len(self.edges) - 1, at + self.draw.randrange(1, 60))]
                data = self.whole[self.offset : stop]
                path = f"/api/experiments/{RUN}/segments/{SEGMENT}?offset={self.offset}"
                connection.request(
                    "PUT", path, data, {"Authorization": f"Bearer {self.token}", **digest(data)}
                )
                answer = connection.getresponse()
                said = answer.read()
                if answer.status in (200, 409):
                    self.offset = json.loads(said)["offset"]
                    self.news.release()
                elif answer.status != 503:
                    self.strange.append(f"{answer.status} {said!r}")
                    self.stop.set()


def assert_held_once(server: Server, whole: bytes) -> None:
    data, rows = held(server.database)
    assert data == whole
    count = whole.count(b'\n["p"') + whole.startswith(b'["p"')
    assert len(rows) == 2 * count
    assert [ordinal for _, ordinal, _ in rows] == [*range(count), *range(count)]
    checked = server.command("server", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_killed_again_and_again_each_byte_is_held_once(tmp_path: Path, database: str) -> None:
    """Two uploaders bring the same segment, as its run and a sync beside it would, over servers that are killed."""
    whole = long_segment()
    with serving(tmp_path, database=database) as server:
        token = token_of(server)
    senders = [Sender(token, whole, seed) for seed in (1, 2)]
    threads = [threading.Thread(target=sender.run) for sender in senders]
    for thread in threads:
        thread.start()
    try:
        for kill in range(KILLS + 1):
            with serving(tmp_path, database=database) as server:
                for sender in senders:
                    sender.port = server.port
                    sender.up.set()
                if kill == KILLS:
                    for thread in threads:
                        thread.join(PATIENCE)
                    assert [sender.strange for sender in senders] == [[], []], server.said
                    assert {sender.offset for sender in senders} == {len(whole)}
                    assert_held_once(server, whole)
                    return
                for _ in range(4 + 2 * kill):
                    assert senders[0].news.acquire(timeout=PATIENCE), server.said
                for sender in senders:
                    sender.up.clear()
                server.kill()
    finally:
        for sender in senders:
            sender.stop.set()
            sender.up.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_two_processes_take_one_segment_between_them(tmp_path: Path, cluster: Cluster) -> None:
    whole, database = long_segment(), cluster.create()
    (tmp_path / "second").mkdir()
    shared = {"BLOBS_DIRECTORY": str(tmp_path / "blobs")}
    with (
        serving(tmp_path, database=database, **shared) as first,
        serving(tmp_path / "second", database=database, **shared) as second,
    ):
        token = token_of(first)
        senders = [Sender(token, whole, seed) for seed in range(4)]
        threads = [threading.Thread(target=sender.run) for sender in senders]
        for sender, server in zip(senders, (first, second, first, second), strict=True):
            sender.port = server.port
            sender.up.set()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert [sender.strange for sender in senders] == [[]] * 4
        assert_held_once(first, whole)
        with watch(second, token, RUN) as client:
            until_message(client, lambda one: one.get("experiments"))
            put(first, token, lines_of((2000, (0.25, 0.5)), start=2000), len(whole))
            (run,) = until_message(client, lambda one: one.get("experiments"))["experiments"]
            assert [(one["name"], one["from"], one["value"]) for one in run["series"]] == [
                ("loss", 2000, [0.25]), ("lr", 2000, [0.5]),
            ]  # fmt: skip
        data = random.Random(1).randbytes(100_000)
        sha256 = hashlib.sha256(data).hexdigest()
        for place, server in ((0, first), (50_000, second)):
            path = f"/api/blobs/{sha256}?offset={place}"
            answer = server.ask("PUT", path, data[place : place + 50_000], token)
        assert answer.json == {"offset": 100_000, "complete": True}


# --- who may, and how ----------------------------------------------------------------------------------------


def test_who_may_write_experiments(server: Server, token: str) -> None:
    path = f"/api/experiments/{RUN}/segments/{SEGMENT}?offset=0"
    reporter, reader = server.token("--contract", "12345"), server.token("--scope", "read")
    other = token_of(server, "999")
    assert server.ask("PUT", path, BEGIN).status == 401
    assert [server.ask("PUT", path, BEGIN, one).status for one in (reporter, reader)] == [403, 403]
    assert put(server, token, BEGIN).json == {"offset": len(BEGIN), "status": "running"}
    strange = put(server, other, BEGIN)
    assert (strange.status, "12345" in strange.body.decode(), "offset" in strange.json) == (404, False, False)
    headers = {"X-Contract-Number": "999"}
    assert server.ask("PUT", path, BEGIN, token, headers).status == 403
    local = (server.folder / ".local/state/gpu_monitor/local.token").read_text().split()[-1]
    mine = header("mine")
    path = f"/api/experiments/mine/segments/{SEGMENT}?offset=0"
    assert server.ask("PUT", path, mine, local, {"X-Contract-Number": "777"}).status == 200
    shown = server.ask("GET", "/api/experiments/mine", token=local).json
    assert shown["contract_number"] == "777"


def test_a_clock_that_was_set_back_makes_no_negative_duration(server: Server, token: str) -> None:
    assert (
        put(server, token, BEGIN + encode(Status(-3_600_000, "completed", {}))).json["status"] == "completed"
    )
    shown = server.ask("GET", f"/api/experiments/{RUN}", token=token).json
    assert (shown["status"], shown["duration_seconds"]) == ("completed", None)


def test_encodings_digests_and_sizes(server: Server, token: str) -> None:
    path = f"/api/experiments/{RUN}/segments/{SEGMENT}?offset=0"
    packed = gzip.compress(BEGIN)
    sent = {"Content-Encoding": "gzip", **digest(packed)}
    assert server.ask("PUT", path, packed, token, sent).status == 200
    assert server.ask("PUT", path, BEGIN, token, digest(BEGIN + b"x")).status == 422
    assert server.ask("PUT", path, b"x" * ((1 << 20) + 1), token).status == 413
    bomb = gzip.compress(b"a" * (1 << 20) + b"\n")
    assert server.ask("PUT", path, bomb, token, {"Content-Encoding": "gzip"}).status == 413
    assert server.ask("PUT", path, BEGIN[:-1], token).status == 422
    assert server.ask("PUT", path, b"", token).json["offset"] == len(BEGIN)
    assert server.ask("PUT", path.replace("offset=0", "offset=-1"), BEGIN, token).status == 422
    assert server.ask("PUT", path.replace(SEGMENT, "seg-../../etc"), BEGIN, token).status in (404, 405)
    assert server.ask("PUT", path.replace(RUN, ".."), BEGIN, token).status in (404, 405, 422)


def test_hostile_bodies_are_answered_and_break_nothing(server: Server, token: str) -> None:
    def checked(body: bytes) -> bytes:
        return b'%b,"%08x"]\n' % (body, zlib.crc32(body))

    at = put(server, token, BEGIN).json["offset"]
    deep = b"[" * 200_000 + b"]" * 200_000
    refused = [
        checked(b'["p",1,1,0,[1e999,1]'),
        checked(b'["p",1,1,0,[%b,1]' % (b"9" * 400)),
        checked(b'["p",1,%b,0,[1,1]' % (b"9" * 400)),
        checked(b'["p",1,1,%b,[1,1]' % (b"9" * 30)),
        checked(b'["p",1,1,0,[[1],1]'),
        checked(b'["a",1,{"x":%b}' % deep),
        checked(b'["n",1,"\xff\xfe"'),
        checked(b'["n",1,"\\ud800"'),
        checked(b'["s",-1,"x",{}'),
        checked(b'["z",1,"running",{"exit_code":%b}' % deep),
        checked(b'["c",1,{"' + b"k" * 200 + b'":1}'),
        checked(b'["m",1,null,"image","x",{"sha256":1}'),
    ]
    for line in refused:
        answer = put(server, token, line, at)
        assert answer.status == 422, (line[:60], answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
    kept = [
        b"\0" * 1000 + b"\n",
        b'{"not": "an array"}\n',
        checked(b'["q",1,{"later":true}'),
        checked(b'{"a":1'),
        encode(Params(1, {"big": 10**300, "deep": json.loads("[" * 100 + "]" * 100), "nul": "a\0b"})),
        encode(Tag(1, "nul\0", "\0")),
        encode(Text(1, "stdout", "\0\x1b[31m\U0001f600" * 1000)),
        encode(Note(1, "x" * 900_000)),
        encode(Status(1, "running", {"exit_code": 10**300, "reason": ["no text"]})),
    ]
    for line in kept:
        answer = put(server, token, line, at)
        assert answer.status == 200, (line[:60], answer.body)
        at = answer.json["offset"]
    shown = server.ask("GET", f"/api/experiments/{RUN}", token=token)
    assert shown.status == 200, shown.body
    assert shown.json["params"]["nul"] == "a\0b"
    assert server.ask("GET", f"/api/logs/{RUN}", token=token).status == 200
    checked_too = server.command("server", "check")
    assert checked_too.returncode == 0, checked_too.stdout


def test_more_points_than_one_transaction_takes(server: Server, token: str) -> None:
    many = [f"m{number}" for number in range(500)]
    whole = header() + names(*many) + b"".join(encode(Points(s, s, 0, [s % 7] * 500)) for s in range(900))
    assert len(whole) < 1 << 20
    answer = put(server, token, whole)
    assert (answer.status, answer.json["offset"]) == (200, len(whole))
    assert server.ask("GET", f"/api/experiments/{RUN}", token=token).json["points"] == 450_000


def test_a_run_lives_and_is_seen_to_have_crashed(server: Server, token: str) -> None:
    put(server, token, BEGIN)
    alive = server.ask("POST", f"/api/experiments/{RUN}/alive", {"segment": SEGMENT, "at": 5}, token)
    assert (alive.status, alive.json["status"]) == (200, "running")
    reporter = server.token("--contract", "12345")
    gone: dict[str, Any] = {
        "segment": SEGMENT, "boot_id": BOOT, "start_ticks": 86_400, "ns_pid": 12, "time": 1_710_945_100.5,
        "cause": {"signal": 9}, "by": "agent",
    }  # fmt: skip
    path = f"/api/experiments/{RUN}/ended"
    assert server.ask("POST", path, {**gone, "start_ticks": 1}, reporter).status == 409
    assert server.ask("POST", path, {**gone, "ns_pid": None}, reporter).status == 422
    assert server.ask("POST", path, {**gone, "cause": {"x": "y" * 5000}}, reporter).status == 422
    assert server.ask("POST", path, gone, server.token("--contract", "999")).status == 404
    assert server.ask("POST", path, gone, reporter).json == {"experiment_id": RUN, "status": "crashed"}
    shown = server.ask("GET", f"/api/experiments/{RUN}", token=token).json
    assert (shown["status"], shown["signal"], shown["ended"]) == (
        "crashed",
        "9",
        "2024-03-20T14:31:40.500+00:00",
    )


# --- files ---------------------------------------------------------------------------------------------------


def test_a_file_over_http(server: Server, token: str) -> None:
    data = b"<script>alert(1)</script>" * 40_000
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"/api/blobs/{sha256}"

    def part(start: int, stop: int, **more: Any) -> Answer:
        query = f"?offset={start}" + "".join(f"&{name}={value}" for name, value in more.items())
        return server.ask("PUT", path + query, data[start:stop], token, digest(data[start:stop]))

    missing = server.ask("HEAD", path, token=token)
    assert (missing.status, missing.headers["upload-offset"]) == (404, "0")
    assert part(0, 500_000).json == {"offset": 500_000, "complete": False}
    missing = server.ask("HEAD", path, token=token)
    assert (missing.status, missing.headers["upload-offset"]) == (404, "500000")
    gap = part(600_000, 700_000)
    assert (gap.status, gap.json["offset"]) == (409, 500_000)
    assert part(400_000, len(data), size=len(data)).json == {"offset": len(data), "complete": True}
    there = server.ask("HEAD", path, token=token)
    assert (there.status, there.headers["content-length"]) == (200, str(len(data)))
    assert server.ask("GET", path, token=token).status == 404  # no experiment names it yet
    put(
        server,
        token,
        BEGIN + encode(Media(1, None, "artifact", "page", {"sha256": sha256, "size": len(data)})),
    )
    shown = server.ask("GET", path + "?name=page.html", token=token)
    assert (shown.status, shown.body == data) == (200, True)
    assert shown.headers["content-disposition"] == 'attachment; filename="page.html"'
    assert (shown.headers["x-content-type-options"], shown.headers["content-type"]) == (
        "nosniff", "application/octet-stream",
    )  # fmt: skip
    some = server.ask("GET", path, token=token, headers={"Range": "bytes=5-9"})
    assert (some.status, some.body) == (206, data[5:10])
    assert server.ask("GET", path, token=token_of(server, "999")).status == 404
    wrong = server.ask("PUT", f"/api/blobs/{'0' * 64}?offset=0&size=3", b"abc", token)
    assert (wrong.status, "discarded" in wrong.body.decode()) == (422, True)
    for bad in ("..%2f..%2fetc%2fpasswd", sha256.upper(), sha256[:-1]):
        assert server.ask("GET", f"/api/blobs/{bad}", token=token).status in (404, 422)


def test_backup_check_and_files(tmp_path: Path) -> None:
    data = b"weights" * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    record = encode(Media(1, None, "checkpoint", "c", {"sha256": sha256, "size": len(data)}))
    with serving(tmp_path) as server:
        token = token_of(server)
        server.ask("PUT", f"/api/blobs/{sha256}?offset=0", data, token)
        put(server, token, BEGIN + record)
        checked = server.command("server", "check")
        assert "1 experiments with 1 segments, 1 files: all as it was written" in checked.stdout, (
            checked.stdout
        )
        made = server.command("server", "backup", str(tmp_path / "a.backup"))
        assert "not in it: 1 files of experiments" in made.stdout, made.stdout + made.stderr
        beside = ("--files", str(tmp_path / "files"))
        made = server.command("server", "backup", str(tmp_path / "b.backup"), *beside)
        assert "1 files of experiments, 1 of them new, verified" in made.stdout, made.stdout + made.stderr
        (path,) = (tmp_path / "blobs").glob(f"*/{sha256}")
        path.write_bytes(b"?" + data[1:])
        checked = server.command("server", "check")
        assert (checked.returncode, f"file {sha256}" in checked.stdout) == (1, True)
        path.unlink()
        assert server.stop() == 0
        back = server.command("server", "restore", "--yes", str(tmp_path / "b.backup"))
        assert "1 files of experiments are not in" in back.stdout, back.stdout + back.stderr
    with serving(tmp_path) as server:
        assert server.ask("GET", f"/api/blobs/{sha256}", token=token).status == 404
        (copy,) = (tmp_path / "files").glob(f"*/{sha256}")
        path.write_bytes(copy.read_bytes())
        assert server.ask("GET", f"/api/blobs/{sha256}", token=token).body == data
        assert put(server, token, BEGIN).status == 200


# --- live ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watch(server: Server, token: str, *runs: str) -> Iterator[ClientConnection]:
    url = server.url.replace("http", "ws", 1) + "/ws/live"
    headers = {"Authorization": f"Bearer {token}"}
    with connect(url, additional_headers=headers, open_timeout=PATIENCE) as client:
        client.send(json.dumps({"subscribe": {"experiments": list(runs)}}))
        yield client


def until_message(client: ClientConnection, wanted: Any) -> Any:
    while not wanted(message := json.loads(client.recv(timeout=PATIENCE))):
        pass
    return message


def test_points_are_pushed_as_they_come(server: Server, token: str) -> None:
    at = put(server, token, BEGIN + lines_of((0, (1.0, 0.1)), (1, (0.5, 0.1)))).json["offset"]
    put(server, token, header("hidden"), experiment="hidden")
    with watch(server, token, RUN, "absent") as client:
        (run,) = until_message(client, lambda one: one.get("experiments"))["experiments"]
        assert (run["id"], run["reset"], run["points"], run["status"]) == (RUN, True, 4, "running")
        assert [(one["name"], one["from"], one["value"]) for one in run["series"]] == [
            ("loss", 1, [0.5]), ("lr", 1, [0.1]),
        ]  # fmt: skip
        seen: list[Any] = []
        for number in range(2, 6):
            more = lines_of((7 - number, ("NaN", 0.1)), start=number)  # steps go back
            at = put(server, token, more, at).json["offset"]
        while len(seen) < 4:
            (run,) = until_message(client, lambda one: one.get("experiments"))["experiments"]
            assert run["reset"] is False
            loss = run["series"][0]
            assert loss["from"] == 2 + len(seen)
            seen += zip(loss["step"], loss["value"], strict=True)
        assert seen == [(5, "NaN"), (4, "NaN"), (3, "NaN"), (2, "NaN")]
        put(server, token, encode(Status(9000, "completed", {})), at)
        (run,) = until_message(client, lambda one: one.get("experiments"))["experiments"]
        assert (run["status"], run["series"]) == ("completed", [])
    with watch(server, token_of(server, "999"), RUN) as client:
        client.send(json.dumps({"subscribe": {"experiments": [RUN], "fleet": True}}))
        for _ in range(2):
            assert "experiments" not in json.loads(client.recv(timeout=PATIENCE))

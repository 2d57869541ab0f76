"""The real server under what nobody honest sends: it answers as it should, stays up, and does not grow."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.wire.training import Alert, Capture, Media, Note, Text
from tests.e2e.program import environment
from tests.server.posts import HOUR, encode, headers_of, join, make_entry, make_report
from tests.server.rig import PATIENCE, Server, pss_kib, serving
from tests.server.runs import Segment, known_segments, parts

MEMORY_KIB = 400 * 1024
"""A resting server takes 80 MB; what may be on its way at once is bounded to 64 MiB of bodies and 64 of work."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server
        assert server.process.poll() is None, server.said
        assert server.ask("GET", "/healthz").status == 200
        assert "Traceback" not in server.said
        if sys.platform == "linux":
            assert pss_kib(server.process.pid) < MEMORY_KIB


def post(server: Server, token: str, body: bytes, path: str = "/api/metrics", **headers: str) -> int:
    sent = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {token}",
        **headers_of(body),
        **headers,
    }
    return server.ask("POST", path, body, None, sent).status


@pytest.mark.slow
def test_what_the_description_allows_and_what_it_does_not_is_answered_as_it_says(
    server: Server, tmp_path: Path
) -> None:
    token, writer = server.token("--scope", "admin", "--scope", "read"), server.token("--contract", "12345")
    for hour in range(HOUR, HOUR + 3):
        assert post(server, writer, encode(make_report(hour=hour))) == 200
    uploader = server.token("--contract", "12345", "--scope", "experiment:write")
    for _, segment in known_segments(HOUR * 3600.0):
        place = 0
        for part in parts(segment.lines):
            where = f"/api/experiments/{segment.experiment}/segments/{segment.segment}?offset={place}"
            assert server.ask("PUT", where, part, uploader).status == 200
            place += len(part)
    asked = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--phases", "coverage,fuzzing",
            "--max-examples", "3", "--no-shrink", "--seed", "20240320", "--warnings", "off",
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            # Logging out would end nothing here; a password costs 50 ms of hashing each, which is what it is for.
            "--exclude-path-regex", "^/api/(users|session)", "--header", f"Authorization: Bearer {token}",
        ],
        cwd=tmp_path, env=environment(tmp_path, HYPOTHESIS_STORAGE_DIRECTORY=str(tmp_path / "examples")),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stdout[-6000:] + asked.stderr[-2000:]
    assert "No issues found" in asked.stdout


def hostile_bodies() -> list[tuple[str, bytes, dict[str, str], int]]:
    """What is sent, with which headers, and the status that must come."""
    many = make_report(gpus=[{"uid": f"GPU-{number}", "source": "nvml"} for number in range(10_000)])
    good = encode(make_report())
    packed = {"Content-Encoding": "gzip"}
    return [
        ("a bomb of 64 MiB", gzip.compress(bytes(64 << 20), 9), packed, 413),
        ("a bomb within a bomb", gzip.compress(gzip.compress(bytes(64 << 20), 9), 9), packed, 422),
        ("half a gzip stream", gzip.compress(good)[:-20], packed, 422),
        ("bytes that are no zstd", good, {"Content-Encoding": "zstd"}, 422),
        ("an encoding nobody knows", good, {"Content-Encoding": "br"}, 415),
        ("10,000 GPUs", encode(many), {}, 422),
        ("JSON 500,000 deep", b'{"schema":' + b"[" * 500_000 + b"]" * 500_000 + b"}", {}, 422),
        ("deep in a report's unknown field", good[:-1] + b',"x":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}", {}, 422),
        ("bad UTF-8", good.replace(b"node-1", b"node-\xff"), {}, 422),
        ("NaN", good.replace(b"300.25", b"NaN"), {}, 422),
        ("a number without end", good.replace(b"300.25", b"1" * 100_000), {}, 422),
        ("a lone surrogate", good.replace(b"node-1", rb"\ud800"), {}, 422),
        ("a list", b"[" + b"0," * 500_000 + b"0]", {}, 422),
        ("nothing", b"", {}, 422),
    ]  # fmt: skip


@pytest.mark.parametrize("times", [1, 8], ids=["once", "eight at once"])
def test_hostile_bodies_are_refused_and_an_honest_agent_is_served(server: Server, times: int) -> None:
    token = server.token("--contract", "12345")
    found: list[tuple[str, int, int]] = []

    def attack() -> None:
        for what, body, headers, wanted in hostile_bodies():
            status = post(server, token, body, **headers)
            found.append((what, status, wanted))

    attackers = [threading.Thread(target=attack) for _ in range(times)]
    for attacker in attackers:
        attacker.start()
    served = [post(server, token, encode(make_report(hour=HOUR + number))) for number in range(10)]
    for attacker in attackers:
        attacker.join(PATIENCE)
    assert [one for one in found if one[1] != one[2] and one[1] != 503] == []
    assert len(found) == times * len(hostile_bodies())
    assert served == [200] * 10


def test_one_wrong_report_spoils_no_other_of_its_batch(server: Server) -> None:
    token = server.token("--contract", "12345")
    wrong = make_report(hour=HOUR + 1, gpus=[make_entry(power_usage="much")])
    foreign = make_report(hour=HOUR + 2, contract="99999")
    bodies = [
        encode(make_report()),
        encode(wrong),
        encode(foreign),
        b'{"schema":7}',
        encode(make_report(hour=HOUR + 3)),
    ]
    body = join(*bodies)
    answer = server.ask("POST", "/api/metrics/batch", body, token)
    assert answer.status == 200
    assert [one["status"] for one in answer.json["answers"]] == [200, 422, 403, 422, 200]


@pytest.mark.slow
def test_500_slow_uploads_keep_nobody_out(server: Server) -> None:
    token = server.token("--contract", "12345")
    head = (
        f"POST /api/metrics HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1900000\r\n\r\n"
    ).encode()
    held, enough, done = [], threading.Event(), threading.Event()

    async def hold() -> None:
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", server.port) for _ in range(500))
        )
        held.extend(opened)
        for _, writer in opened:
            writer.write(head + b"{" * 100_000)
        enough.set()
        await asyncio.to_thread(done.wait, PATIENCE)
        for _, writer in opened:
            writer.close()

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    try:
        assert enough.wait(PATIENCE)
        assert len(held) == 500
        assert [post(server, token, encode(make_report(hour=HOUR + number))) for number in range(20)] == [
            200
        ] * 20
        assert server.ask("GET", "/api/fleet").status == 200
        assert json.loads(server.ask("GET", "/readyz").body)["ready"] is True
    finally:
        done.set()
        holder.join(PATIENCE)


def test_an_experiment_of_long_texts_is_answered_by_the_piece(server: Server) -> None:
    uploader = server.token("--contract", "12345", "--scope", "experiment:write")
    long = "x" * 900_000
    segment = Segment("run-1", "long", "p", HOUR * 3600.0)
    for number in range(10):
        segment.params(**{f"p{number}": long})
        segment.add(Note(number, long)).add(Text(number, "stdout", long)).add(
            Alert(number, "info", "t", long)
        )
        segment.add(Capture(number, {f"t{number}": long})).add(
            Media(number, 1, "table", f"m{number}", {"data": long})
        )
        segment.add(Media(number, 1, "model", "net", {"sha256": "ab" * 32, "size": 1, "why": long}))
    place = 0
    for part in parts(segment.lines):
        where = f"/api/experiments/run-1/segments/{segment.segment}?offset={place}"
        assert server.ask("PUT", where, part, uploader).status == 200
        place += len(part)
    room = 4 << 20
    whole = server.ask("GET", "/api/experiments/run-1")
    assert whole.json["cut"] == ["params", "notes", "alerts", "facts"]
    assert (
        len(whole.json["params"]) == len(whole.json["notes"]) == len(whole.json["facts"]) == room // 900_000
    )
    compared = server.ask("GET", "/api/compare?ids=run-1")
    assert (compared.json["cut"], len(compared.json["params"])) == (["params"], room // 900_000)
    for path, name in (
        ("experiments/run-1/media", "items"),
        ("models/run-1", "items"),
        ("registry/models/net", "items"),
    ):
        seen, after = 0, ""
        while True:
            page = server.ask("GET", f"/api/{path}?limit=1000{after}")
            assert len(page.body) < 2 * room
            seen += len(page.json[name])
            if page.json["next"] is None:
                break
            after = f"&cursor={page.json['next']}"
        assert seen == (20 if "media" in path else 10)
    lines, before = 0, ""
    while True:
        page = server.ask("GET", f"/api/logs/run-1?limit=1000{before}")
        lines += len(page.json["lines"])
        if page.json["previous"] is None:
            break
        before = f"&before={page.json['previous']}"
    assert lines == 10

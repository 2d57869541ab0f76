"""Segments are taken exactly once: repeats, overlaps, gaps, conflicts; and what they say is in the tables."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from sqlalchemy import Table, func, insert, select

from gpu_monitor.server.store import experiment_write
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.experiment_write import MOST
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import (
    captures,
    experiments,
    media,
    models,
    notes,
    params,
    projects,
    run_alerts,
    segment_chunks,
    segments,
    series,
    tags,
    texts,
)
from gpu_monitor.server.store.schema_experiments import points as points_table
from gpu_monitor.server.store.segment_chunks import unpack
from gpu_monitor.server.store.segment_records import BadLine
from gpu_monitor.server.store.segment_write import (
    Author,
    Ending,
    Held,
    Outcome,
    Refused,
    SignOfLife,
    Upload,
    Work,
    write_work,
)
from gpu_monitor.wire.training import (
    Alert,
    Capture,
    Media,
    Note,
    Params,
    Points,
    PointSet,
    Series,
    Status,
    Tag,
    Text,
    encode,
)
from tests.server.segments import BOOT, RUN, SEGMENT, STARTED, header, names, points, upload

NOW = STARTED + 100.0
OTHER = "seg-b0000000"
BEGIN = header() + names("loss", "lr")


@pytest.fixture(autouse=True)
def two_contracts(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(contracts), [{"number": "12345"}, {"number": "999"}])


def write(store: Store, *work: Work, now: float = NOW) -> list[Outcome]:
    with store.write() as connection:
        return write_work(connection, work, now).outcomes


def taken(store: Store, *work: Work, now: float = NOW) -> int:
    """Where the last one was held up to; all must be taken."""
    outcomes = write(store, *work, now=now)
    assert all(isinstance(one, Held) for one in outcomes), outcomes
    last = outcomes[-1]
    assert isinstance(last, Held)
    return last.offset


def refused(store: Store, work: Work) -> Refused:
    before = everything(store)
    (outcome,) = write(store, work)
    assert isinstance(outcome, Refused), outcome
    assert everything(store) == before, "what was refused left something"
    return outcome


def rows(store: Store, table: Any) -> list[Any]:
    with store.read() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key)).fetchall())


def the_run(store: Store) -> Any:
    (row,) = rows(store, experiments)
    return row


ALL = (
    projects, experiments, segments, segment_chunks, series, points_table, params, tags, notes, captures, run_alerts,
    texts, media, models,
)  # fmt: skip


def everything(store: Store) -> list[list[Any]]:
    return [[tuple(row) for row in rows(store, table)] for table in ALL]


def held_bytes(store: Store) -> bytes:
    whole = b""
    for chunk in rows(store, segment_chunks):
        assert chunk.start == len(whole)
        part = unpack(bytes(chunk.data), chunk.length)
        assert part is not None
        whole += part
    return whole


# --- exactly once ---------------------------------------------------------------------------------------


def test_a_segment_in_any_pieces_repeated_and_overlapping_is_held_once(store: Store) -> None:
    draw = random.Random(4)
    lines = (BEGIN + points(*((step, (draw.random(), 0.001)) for step in range(200)))).splitlines(True)
    whole = b"".join(lines)
    edges = [0]
    for line in lines:
        edges.append(edges[-1] + len(line))
    held = 0
    while held < len(whole):
        # From somewhere that is held already to somewhere beyond, twice.
        start = max(edge for edge in edges if edge <= held) if held else 0
        start = edges[max(0, edges.index(start) - draw.randrange(4))]
        stop = edges[min(len(edges) - 1, edges.index(held) + draw.randrange(1, 30))]
        for _ in range(2):
            held = taken(store, upload(whole[start:stop], start))
        assert held == stop
    assert held_bytes(store) == whole
    run = the_run(store)
    assert (run.points, run.bytes, run.last_step, run.status) == (400, len(whole), 199, "running")
    assert len(rows(store, points_table)) == 400
    assert [(row.name, row.points) for row in rows(store, series)] == [("loss", 200), ("lr", 200)]


def test_many_small_uploads_do_not_make_many_rows(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    for step in range(300):
        line = points((step, (1.0, 2.0)), start=step)
        at = taken(store, upload(line, at))
    assert at == the_run(store).bytes == len(held_bytes(store))
    assert len(rows(store, segment_chunks)) <= 2


def test_a_gap_says_where_to_go_on(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    outcome = refused(store, upload(points((0, (1.0, 2.0))), at + 7))
    assert (outcome.status, outcome.offset) == (409, at)
    outcome = refused(store, upload(points((0, (1.0, 2.0))), 50, segment=OTHER))
    assert (outcome.status, outcome.offset) == (409, 0)


def test_bytes_that_differ_change_nothing(store: Store) -> None:
    first, second = points((0, (1.0, 2.0))), points((0, (1.0, 3.0)))
    at = taken(store, upload(BEGIN + first))
    assert refused(store, upload(second, at - len(first))).status == 422
    assert refused(store, upload(second + points((1, (1.0, 2.0))), at - len(first))).status == 422
    assert taken(store, upload(first, at - len(first))) == at


def test_two_uploaders_of_one_segment_in_one_group(store: Store) -> None:
    whole = BEGIN + points(*((step, (1.0, 2.0)) for step in range(10)))
    half = len(BEGIN) + len(points(*((step, (1.0, 2.0)) for step in range(5))))
    assert taken(store, upload(whole[:half]), upload(whole), upload(whole[half:], half)) == len(whole)
    assert (the_run(store).points, held_bytes(store)) == (20, whole)


# --- whose it is ----------------------------------------------------------------------------------------


def test_the_header_makes_the_experiment_in_its_project(store: Store) -> None:
    taken(store, upload(header(simulated=True, gpus=["GPU-1"], rank=0, python="3.11.7")))
    run = the_run(store)
    assert (run.uid, run.name, run.contract, run.status) == (RUN, "resnet50", 1, "running")
    assert (run.started, run.created, run.lease, run.simulated) == (STARTED, NOW, NOW + 60, True)
    assert (run.host, run.user, run.created_by) == ("node-1", "ada", "token test")
    (project,) = rows(store, projects)
    assert (project.name, project.contract, project.id) == ("images", 1, run.project)
    (segment,) = rows(store, segments)
    assert (segment.name, segment.boot_id, segment.start_ticks, segment.ns_pid) == (SEGMENT, BOOT, 86_400, 12)
    assert (segment.gpus, segment.rank, segment.python) == ('["GPU-1"]', 0, "3.11.7")


def test_another_contract_hears_nothing_of_it(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    for work in (
        upload(BEGIN, contract=2),
        upload(points((0, (1.0, 2.0))), at, contract=2),
        upload(header(segment=OTHER), segment=OTHER, contract=2),
        SignOfLife(Author("x", 2, ""), RUN, SEGMENT),
        SignOfLife(Author("x", 2, ""), "no-such-run", SEGMENT),
    ):
        outcome = refused(store, work)
        assert (outcome.status, outcome.offset) == (404, None)


def test_a_token_of_every_contract_writes_for_the_one_it_names(store: Store) -> None:
    author = Author("local", None, "777")
    one = upload(BEGIN)
    taken(store, Upload(author, RUN, SEGMENT, 0, one.data, one.records))
    assert {row.number: row.id for row in rows(store, contracts)}["777"] == the_run(store).contract


WRONG = [
    (points((0, (1.0,))), "begins with its header"),
    (header("other-run"), "another experiment"),
    (header(segment=OTHER), "another experiment or segment"),
    (header(name=""), "the name of an experiment has 0 letters"),
    (header(project="x" * 251), "the name of a project has 251 letters"),
    (header(started=-1.0), "years 1970 to 9999"),
    (header(pid=2**64), "pid is no whole number of 64 bits"),
    (header(gpus=["GPU"] * 2000), "1,024 GPUs"),
    (header() + header(), "only there"),
    (header() + encode([b"h".decode(), 1, {}]), "not a record"),
    (BEGIN + encode(Points(0, 2**63, 0, [1.0, 1.0])), "64 bits"),
    (BEGIN + encode(Points(0, 0, 1, [1.0, 1.0])), "set 1 was not described"),
    (BEGIN + encode(Points(0, 0, 0, [1.0])), "1 values of a set of 2"),
    (BEGIN + encode(Points(0, 0, 0, [1.0, "nan"])), "'nan' is no value"),
    (BEGIN + encode(Points(2**60, 0, 0, [1.0, 1.0])), "no moment"),
    (BEGIN + encode(Series(0, "other", {})), "'loss' already"),
    (BEGIN + encode(Series(10_000, "other", {})), "numbers from 0 to 9999"),
    (BEGIN + encode(Series(2, "ümlaut", {})), "no name of a metric"),
    (BEGIN + encode(PointSet(1, [7])), "not named before"),
    (BEGIN + encode(PointSet(0, [1])), "other series already"),
    (BEGIN + encode(Status(0, "happy", {})), "a status is one of"),
    (BEGIN + encode(Alert(0, "fatal", "a", "b")), "the level of an alert"),
    (BEGIN + encode(Tag(0, "", "x")), "the key of a tag"),
    (BEGIN + encode(Media(0, None, "art/e", "x", {})), "no kind of media"),
    (BEGIN + encode(Media(0, None, "artifact", "../../etc/passwd", {})), "cannot name an artifact"),
    (BEGIN + encode(Media(0, None, "image", "x", {"sha256": "ABC"})), "64 hexadecimal digits"),
    (BEGIN + encode(Media(0, 2**70, "image", "x", {})), "64 bits"),
]  # fmt: skip


def test_what_is_no_record_is_refused_with_its_place(store: Store) -> None:
    for line, reason in WRONG:
        told = _refusal(store, line)
        assert reason in told, told


def _refusal(store: Store, data: bytes) -> str:
    """Why it is refused: by the line alone, or by what stood before it."""
    try:
        one = upload(data)
    except BadLine as error:
        return error.reason
    outcome = refused(store, one)
    assert outcome.status == 422
    return outcome.detail


# --- what is read ---------------------------------------------------------------------------------------


def test_every_value_comes_back_as_what_it_was(store: Store) -> None:
    values: list[Any] = [0.1, "NaN", 0.0, "Infinity", 1e308, "-Infinity", 5e-324, 7, -3.5, 2**80]
    steps = [0, 0, -5, 3, 3, 3, 2**63 - 1, -(2**63), 1, 1]
    taken(
        store, upload(header() + names("x") + points(*((s, [v]) for s, v in zip(steps, values, strict=True))))
    )
    found = sorted(rows(store, points_table), key=lambda row: row.ordinal)
    special = {1: math.nan, 2: math.inf, 3: -math.inf}
    came = [row.value if row.special is None else special[row.special] for row in found]
    wanted = [{"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(v, v) for v in values]
    assert list(map(repr, came)) == [repr(float(value)) for value in wanted]
    assert [row.step for row in found] == steps
    assert [row.time for row in found] == [STARTED + number for number in range(10)]
    (one,) = rows(store, series)
    assert (one.points, one.specials, one.special_step) == (10, 3, 0)
    assert (one.last_value, one.last_step, one.last_special) == (float(2**80), 1, None)
    assert (one.min_value, one.min_step, one.max_value, one.max_step) == (-3.5, 1, 1e308, 3)
    assert the_run(store).specials == 3


def test_the_figures_of_a_metric_are_those_of_all_its_points(store: Store) -> None:
    """Against a reckoning over the points themselves, through many uploads of two ranks whose clocks differ."""
    draw = random.Random(9)
    logged: list[tuple[float, int, float]] = []
    at = {}
    for name, rank in ((SEGMENT, 0), (OTHER, 1)):
        begin = header(segment=name, rank=rank, started=STARTED + rank * 7.5) + names("loss")
        at[name] = taken(store, upload(begin, segment=name))
    for number in range(40):
        name, shift = draw.choice([(SEGMENT, 0.0), (OTHER, 7.5)])
        some = [
            (draw.randrange(100), draw.choice([draw.uniform(-5, 5), 2.0]))
            for _ in range(draw.randrange(1, 6))
        ]
        data = points(*((step, [value]) for step, value in some), start=number)
        at[name] = taken(store, upload(data, at[name], segment=name))
        logged += [
            (STARTED + shift + number + place, step, value) for place, (step, value) in enumerate(some)
        ]
    (one,) = rows(store, series)
    newest = max(moment for moment, _, _ in logged)
    last = [(step, value) for moment, step, value in logged if moment == newest][-1]
    assert (one.points, one.last_time, one.first_time) == (len(logged), newest, min(logged)[0])
    assert (one.last_step, one.last_value) == last
    least, greatest = (pick(value for _, _, value in logged) for pick in (min, max))
    assert (one.min_value, one.max_value) == (least, greatest)
    assert (one.min_step, one.max_step) == tuple(
        next(step for _, step, value in logged if value == wanted) for wanted in (least, greatest)
    )


def test_torn_and_damaged_lines_are_kept_and_read_around(store: Store) -> None:
    good = points((0, (1.0, 2.0)))
    flipped = points((1, (1.0, 2.0))).replace(b"1.0", b"9.0")
    data = (
        BEGIN
        + good
        + b'["p",12,\n'
        + flipped
        + b"\0\xff\xfe\n"
        + encode(["q", 1, "later"])
        + points((2, (3.0, 4.0)))
    )
    at = taken(store, upload(data))
    assert (at, held_bytes(store)) == (len(data), data)
    (segment,) = rows(store, segments)
    assert (segment.damaged, segment.unknown) == (3, 1)
    assert sorted({row.step for row in rows(store, points_table)}) == [0, 2]


def test_points_whose_description_was_damaged_are_left_out_and_the_rest_is_read(store: Store) -> None:
    torn = header() + encode(Series(0, "loss", {})) + b'["s",1,"lr"\n' + encode(PointSet(0, [0, 1]))
    taken(
        store, upload(torn + points((0, (1.0, 2.0))) + encode(Points(0, 0, 5, [1.0])) + encode(Note(5, "on")))
    )
    assert [(row.name, row.points) for row in rows(store, series)] == [("loss", 1)]
    assert [row.text for row in rows(store, notes)] == ["on"]


def test_what_is_said_beside_metrics(store: Store) -> None:
    sha256 = "ab" * 32
    said = [
        Params(1000, {"lr": 0.001, "layers": 50, "name": "adam\0", "deep": {"a": [1, None]}, "on": True}),
        Params(2000, {"lr": 0.01, "huge": 10**400}),
        Tag(1000, "architecture", "resnet50"),
        Tag(1000, "gone", "x"),
        Tag(2000, "gone", None),
        Note(3000, "raised the rate\0"),
        Text(4000, "stdout", "epoch 1"),
        Text(4000, "stderr", "\U0001f600"),
        Alert(5000, "warning", "slow", "very"),
        Capture(100, {"git": {"commit": "abc"}}),
        Media(6000, 7, "image", "confusion", {"sha256": sha256, "size": 5, "type": "image/png", "file": "media/a", "w": 1}),
        Media(6000, None, "table", "top", {"data": {"columns": ["a"], "rows": [[1]]}}),
        Media(7000, 8, "model", "resnet50", {"sha256": sha256, "size": 5, "metrics": {"acc": 0.9}}),
        Media(8000, 9, "model", "resnet50", {"sha256": sha256, "size": 5}),
    ]  # fmt: skip
    taken(store, upload(header() + b"".join(map(encode, said))))
    found = {row.name: row for row in rows(store, params)}
    assert {name: (row.number, row.text) for name, row in found.items()} == {
        "lr": (0.01, None), "layers": (50.0, None), "name": (None, "adam\ufffd"), "deep": (None, None),
        "on": (1.0, None), "huge": (None, None),
    }  # fmt: skip
    assert json.loads(found["deep"].value) == {"a": [1, None]}
    assert (json.loads(found["name"].value), json.loads(found["huge"].value)) == ("adam\0", 10**400)
    assert [(row.key, row.value) for row in rows(store, tags)] == [
        ("architecture", "resnet50"),
        ("gone", None),
    ]
    assert [row.text for row in rows(store, notes)] == ["raised the rate\ufffd"]
    assert [(r.ordinal, r.stream, r.text) for r in rows(store, texts)] == [
        (0, "stdout", "epoch 1"), (1, "stderr", "\U0001f600"),
    ]  # fmt: skip
    assert [(r.level, r.title, r.text, r.time) for r in rows(store, run_alerts)] == [
        ("warning", "slow", "very", STARTED + 5)
    ]
    assert [(r.topic, json.loads(r.body)) for r in rows(store, captures)] == [("git", {"commit": "abc"})]
    held = {(row.kind, row.time - STARTED): row for row in rows(store, media)}
    image = held["image", 6.0]
    assert (bytes(image.sha256).hex(), image.size, image.type, image.step) == (sha256, 5, "image/png", 7)
    assert (image.file, json.loads(image.more)) == ("media/a", {"w": 1})
    assert json.loads(held["table", 6.0].data)["rows"] == [[1]]
    assert [(r.name, r.version, r.media) for r in rows(store, models)] == [
        ("resnet50", 1, held["model", 7.0].id), ("resnet50", 2, held["model", 8.0].id),
    ]  # fmt: skip


def test_a_later_value_wins_in_whatever_order_segments_come(store: Store) -> None:
    def segment(name: str, shift: float, value: float, tag: str | None) -> Upload:
        said = (
            encode(Params(0, {"lr": value})) + encode(Tag(0, "t", tag)) + encode(Capture(0, {"git": value}))
        )
        return upload(header(segment=name, started=STARTED + shift) + said, segment=name)

    older, newer = segment(SEGMENT, 0, 1.0, "old"), segment(OTHER, 60, 2.0, None)
    for order in ((newer, older), (older, newer)):
        taken(store, *order)
        assert [(row.number, row.time) for row in rows(store, params)] == [(2.0, STARTED + 60)]
        assert [row.value for row in rows(store, tags)] == [None]
        assert [row.body for row in rows(store, captures)] == ["2.0"]


# --- limits ---------------------------------------------------------------------------------------------


LIMITED: list[tuple[str, Any]] = [
    ("metrics", lambda n: encode(Series(n, f"m{n}", {}))),
    ("parameters", lambda n: encode(Params(0, {f"p{n}": 1}))),
    ("tags", lambda n: encode(Tag(0, f"t{n}", "x"))),
    ("notes", lambda n: encode(Note(0, str(n)))),
    ("alerts", lambda n: encode(Alert(0, "info", str(n), ""))),
    ("topics of facts", lambda n: encode(Capture(0, {f"c{n}": 1}))),
    ("pictures, files and models", lambda n: encode(Media(0, None, "image", str(n), {}))),
]


def test_what_an_experiment_has_no_room_for_is_held_and_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (what, record) in enumerate(LIMITED):
        run, table = f"run-{number}", MOST[what][0]
        monkeypatch.setattr(experiment_write, "MOST", {**MOST, what: (table, 5)})

        def shown(run: str = run, table: Table = table) -> tuple[int, int, str]:
            with store.read() as connection:
                of, unknown, status = connection.execute(
                    select(segments.c.experiment, segments.c.unknown, experiments.c.status)
                    .join(experiments, experiments.c.id == segments.c.experiment)
                    .where(experiments.c.uid == run)
                ).one()
                held = select(func.count()).select_from(table).where(table.c.experiment == of)
                return int(connection.execute(held).scalar_one()), unknown, status

        begin = header(run) + b"".join(map(record, range(4)))
        at = taken(store, upload(begin, experiment=run))
        # Two uploads of one group, and the end of the run with the second: one record is too many.
        first, last = record(4), record(5) + encode(Status(9, "completed", {}))
        at = taken(store, upload(first, at, experiment=run), upload(last, at + len(first), experiment=run))
        assert at == len(begin + first + last)
        assert shown() == (5, 1, "completed"), what
        at = taken(store, upload(record(6) + record(3), at, experiment=run))
        is_named = what in ("metrics", "parameters", "tags", "topics of facts")
        assert shown()[:2] == (5, 2 if is_named else 3), "a name that is known takes no room"


# --- status ---------------------------------------------------------------------------------------------


def status_of(store: Store) -> tuple[Any, ...]:
    run = the_run(store)
    return run.status, run.ended, run.exit_code, run.signal, run.reason


def ending(ns_pid: int | None = 12, **changed: Any) -> Ending:
    given = {
        "segment": None, "boot_id": BOOT, "start_ticks": 86_400, "pid": None, "time": STARTED + 50.0,
        "cause": {"signal": 9, "oom": True}, "by": "agent",
    }  # fmt: skip
    return Ending(author=Author("token agent", 1, ""), experiment=RUN, ns_pid=ns_pid, **{**given, **changed})


def test_the_first_word_on_an_end_counts_unless_a_later_one_knows_why(store: Store) -> None:
    taken(store, upload(BEGIN))
    write(store, ending(cause={}, by="sync", time=STARTED + 40.0))
    assert status_of(store) == ("crashed", STARTED + 40, None, None, None)
    write(store, ending(cause={}, by="sdk", time=STARTED + 45.0))
    assert status_of(store) == ("crashed", STARTED + 40, None, None, None)
    write(store, ending())
    assert status_of(store) == ("crashed", STARTED + 50, None, "9", "out of memory")
    for later in (ending(cause={}, by="sync", time=STARTED + 60.0), ending(cause={"signal": 15})):
        write(store, later)
        assert status_of(store) == ("crashed", STARTED + 50, None, "9", "out of memory")


def test_a_run_ends_by_its_own_word(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    assert status_of(store) == ("running", None, None, None, None)
    taken(
        store,
        upload(encode(Status(9000, "failed", {"exit_code": 1, "reason": "ValueError"})), at),
        now=NOW + 5,
    )
    assert status_of(store) == ("failed", STARTED + 9, 1, None, "ValueError")
    assert the_run(store).status_changed == NOW + 5


def test_crashed_needs_proof_of_that_very_process(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    for wrong in (
        ending(13), ending(start_ticks=1), ending(boot_id="other"), ending(None), ending(segment=OTHER),
        ending(None, pid=1),
    ):  # fmt: skip
        assert refused(store, wrong).status == 409
    (outcome,) = write(store, ending())
    assert outcome == Held(at, "crashed")
    assert status_of(store) == ("crashed", STARTED + 50, None, "9", "out of memory")
    proof = json.loads(the_run(store).proof)
    assert (proof["by"], proof["who"], proof["cause"]["signal"]) == ("agent", "token agent", 9)
    # What it had written before comes later: it is taken, and its own last word counts more.
    at = taken(store, upload(points((0, (1.0, 2.0))), at))
    assert the_run(store).status == "crashed"
    taken(store, upload(encode(Status(40_000, "completed", {"exit_code": 0})), at))
    assert status_of(store) == ("completed", STARTED + 40, 0, None, None)
    assert the_run(store).proof is None


def test_a_crashed_run_that_is_resumed_runs_again(store: Store) -> None:
    taken(store, upload(BEGIN))
    write(store, ending())
    resumed = header(segment=OTHER, started=STARTED + 500, resumed=True, pid=5, ns_pid=5, host="node-2")
    taken(store, upload(resumed, segment=OTHER))
    assert status_of(store) == ("running", None, None, None, None)
    assert the_run(store).host == "node-2"
    taken(store, upload(encode(Status(1000, "completed", {})), len(resumed), segment=OTHER))
    assert status_of(store)[:2] == ("completed", STARTED + 501)


def test_ranks_and_forked_children_do_not_speak_for_the_run(store: Store) -> None:
    at = taken(store, upload(header(rank=0)))
    taken(store, upload(header(segment=OTHER, rank=1, started=STARTED + 1), segment=OTHER))
    third = "seg-c0000000"
    taken(
        store,
        upload(
            header(segment=third, parent=SEGMENT, started=STARTED + 2) + encode(Status(1, "failed", {})),
            segment=third,
        ),
    )
    assert status_of(store)[0] == "running"
    taken(store, upload(encode(Status(1000, "completed", {})), at))
    assert status_of(store)[:2] == ("completed", STARTED + 1)


def test_a_sign_of_life_renews_the_lease(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    work = SignOfLife(Author("x", 1, ""), RUN, SEGMENT)
    assert write(store, work, now=NOW + 300) == [Held(at, "running")]
    assert (the_run(store).last_heard, the_run(store).lease) == (NOW + 300, NOW + 360)
    assert refused(store, SignOfLife(Author("x", 1, ""), RUN, OTHER)).status == 404


def test_a_deleted_experiment_does_not_come_back(store: Store) -> None:
    at = taken(store, upload(BEGIN))
    with store.write() as connection:
        connection.execute(experiments.update().values(removed=NOW))
    for work in (
        upload(BEGIN),
        upload(points((0, (1.0, 2.0))), at),
        SignOfLife(Author("x", 1, ""), RUN, SEGMENT),
    ):
        assert refused(store, work).status == 410


def test_a_group_of_many_is_answered_in_its_order(store: Store) -> None:
    """Good ones and bad ones, of many experiments: each is judged for itself."""
    work: list[Work] = []
    for number in range(20):
        run = f"run-{19 - number:02d}"
        work.append(upload(header(run) + names("x") + points((1, [float(number)])), experiment=run))
        work.append(upload(points((1, [1.0])), 10_000, experiment=run))
    outcomes = write(store, *work)
    assert [type(one) for one in outcomes] == [Held, Refused] * 20
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(points_table)).scalar_one() == 20

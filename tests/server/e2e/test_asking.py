"""What the real server says of the known fleet: nodes, GPUs, now; who sees what; how it is refused."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from tests.server.asking import Asked
from tests.server.known import BUSY, GIB, LAZY, LONG, PART, PLAIN, PRETENDED, A, B, C, S


def test_nodes_say_who_speaks(asked: Asked) -> None:
    found = {node["id"]: node for node in asked.get("/api/nodes")["items"]}
    assert list(found) == [A, B, C, S]
    # A's live minute ended just now; B's last report came 96 hours ago.
    assert [found[id]["silent"] for id in (A, B, C, S)] == [False, True, True, False]
    assert [found[id]["simulated"] for id in (A, B, C, S)] == [False, False, False, True]
    assert [found[id]["gpus"] for id in (A, B, C, S)] == [2, 2, 1, 1]
    assert found[B]["silent_after"] == asked.stamp(4 + (60 + 3600 + 900) / 3600)
    assert found[A]["first_seen"] == asked.stamp(0)
    assert found[C]["period_seconds"] == 7200


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"silent": "true"}, [B, C]),
        ({"silent": "false"}, [A, S]),
        ({"contract": "200"}, [B, C]),
        ({"simulated": "true"}, [S]),
        ({"node": "node-c"}, [C]),
        ({"node": B.upper()}, [B]),
        ({"node": "nobody"}, []),
    ],
)
def test_nodes_are_picked(asked: Asked, query: dict[str, str], found: list[str]) -> None:
    assert [node["id"] for node in asked.get("/api/nodes", **query)["items"]] == found


def test_a_list_is_read_page_by_page(asked: Asked) -> None:
    first = asked.get("/api/gpus", limit=4)
    second = asked.get("/api/gpus", limit=4, cursor=first["next"])
    assert [gpu["uid"] for gpu in first["items"]] == [BUSY, LAZY, PLAIN, PART]
    assert [gpu["uid"] for gpu in second["items"]] == [LONG, PRETENDED]
    assert second["next"] is None
    whole = asked.get("/api/gpus", limit=6)
    assert whole["next"] is None


def test_one_node_has_its_gpus_and_its_machine(asked: Asked) -> None:
    found = asked.get(f"/api/nodes/{A}")
    assert [gpu["uid"] for gpu in found["gpus"]] == [BUSY, LAZY]
    # 12.5 % kept in tenths, 12 kept in thousands of bytes/s, coverage in ten-thousandths.
    assert found["host"]["values"]["cpu_utilization"] == 12.5
    assert found["host"]["values"]["network_rx"] == 12_000
    assert found["host"]["values"]["swap_used"] is None
    assert (found["host"]["coverage"], found["host"]["aggregation_time"]) == (0.995, asked.stamp(3))


def test_a_gpu_tells_where_it_was(asked: Asked) -> None:
    found = asked.get(f"/api/gpus/{BUSY}")
    assert [(one["index"], one["pci_bus_id"], one["since"], one["until"]) for one in found["identities"]] == [
        (0, "0000:00:00.0", asked.stamp(2), None),
        (5, "0000:55:00.0", asked.stamp(0), asked.stamp(2)),
    ]
    assert [place["node"] for place in found["places"]] == [A]
    assert found["places"][0]["memory_total"] == 80 * GIB


def test_the_fleet_now_holds_no_old_value_and_no_simulated_sum(asked: Asked) -> None:
    found = asked.get("/api/fleet")
    gpus = {gpu["uid"]: gpu for gpu in found["items"]}
    assert list(gpus[BUSY])[:12] == [
        "uid", "pci_bus_id", "name", "temperature", "memory_used", "memory_total", "gpu_utilization",
        "memory_utilization", "power_usage", "fan_speed", "graphics_clock", "memory_clock",
    ]  # fmt: skip
    assert (gpus[BUSY]["gpu_utilization"], gpus[BUSY]["power_usage"], gpus[BUSY]["status"]) == (
        90.5,
        350.25,
        "ok",
    )
    assert gpus[BUSY]["throttle_reasons"] == ["gpu_idle", "sw_power_cap"]  # 5 = 1 + 4
    # What hangs gives nothing: no value of before stands for it, though its last one is as young as the other's.
    assert (gpus[LAZY]["status"], gpus[LAZY]["power_usage"], gpus[LAZY]["memory_used"]) == (
        "driver hung",
        None,
        None,
    )
    assert (gpus[PLAIN]["gpu_utilization"], gpus[PLAIN]["status"], gpus[PLAIN]["time"]) == (
        None,
        "silent",
        asked.stamp(4),
    )
    # Real GPUs, the instance not counted beside its GPU: busy, lazy, plain, long; one gives values, one hangs.
    assert found["totals"] == {
        "nodes": 3, "silent_nodes": 2, "gpus": 4, "gpus_now": 1, "gpus_failed": 1, "gpus_idle": 0, "gpus_held_idle": 0,
        "gpu_utilization": 90.5, "power_usage": 350.25, "memory_used": 20 * GIB, "memory_total": 80 * GIB,
    }  # fmt: skip
    assert (found["excluded_simulated_gpus"], found["includes_simulated"]) == (1, False)


def test_simulated_gpus_are_in_the_totals_when_asked_for(asked: Asked) -> None:
    found = asked.get("/api/fleet", include="simulated")
    # (90.5 + 50) / 2 = 70.25, to one decimal; the one that hangs counts nowhere.
    assert (found["totals"]["gpus"], found["totals"]["gpus_now"], found["totals"]["gpu_utilization"]) == (
        5,
        2,
        70.2,
    )
    assert (found["totals"]["nodes"], found["excluded_simulated_gpus"]) == (4, 0)


def test_the_fleet_is_picked(asked: Asked) -> None:
    found = asked.get("/api/fleet", model="NVIDIA T4")
    assert [gpu["uid"] for gpu in found["items"]] == [PLAIN, PART, LONG]
    assert (found["totals"]["nodes"], found["totals"]["gpus"]) == (2, 2)
    hung = asked.get("/api/fleet", status="driver hung", limit=1)
    assert ([gpu["uid"] for gpu in hung["items"]], hung["next"]) == ([LAZY], None)


def test_csv_has_the_columns_of_the_items(asked: Asked) -> None:
    rows = asked.csv("/api/fleet")
    assert [row["uid"] for row in rows] == [BUSY, LAZY, PLAIN, PART, LONG, PRETENDED]
    assert (rows[0]["power_usage"], rows[0]["simulated"], rows[2]["power_usage"]) == ("350.25", "false", "")
    assert rows[0]["throttle_reasons"] == "gpu_idle;sw_power_cap"
    assert list(rows[0]) == list(asked.get("/api/fleet")["items"][0])


def test_csv_is_given_where_accept_prefers_it_and_names_the_next_page(asked: Asked) -> None:
    answer = asked.server.ask("GET", "/api/gpus?limit=4", headers={"Accept": "text/csv, application/json"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    link = answer.headers["link"]
    more = asked.server.ask("GET", link[1 : link.index(">")], headers={"Accept": "text/csv"})
    assert len(more.body.splitlines()) == 1 + 2
    plain = asked.server.ask("GET", "/api/gpus", headers={"Accept": "application/json, text/csv"})
    assert plain.headers["content-type"] == "application/json"


def test_a_contracts_token_sees_its_contract_only(asked: Asked) -> None:
    token = asked.server.token("--contract", "200", "--scope", "read")
    assert {node["id"] for node in asked.get("/api/nodes", token)["items"]} == {B, C}
    assert {gpu["uid"] for gpu in asked.get("/api/fleet", token)["items"]} == {PLAIN, PART, LONG}
    assert asked.get("/api/fleet", token)["totals"]["nodes"] == 2
    assert (
        asked.get("/api/usage", token, since=0, to=4, by="contract")["items"][0]["contract_number"] == "200"
    )
    assert asked.get("/api/events", token, since=0, to=4)["items"] == []
    assert asked.get("/api/reports/quarantine", token)["items"] == []
    power = asked.get("/api/series", token, metric="power_usage", agg="sum", since=0, to=1, node=B)
    assert power["items"][0]["value"] == [100]
    told, own = (asked.server.ask("GET", "/metrics", token=one).body.decode() for one in (None, token))
    assert (BUSY in told, BUSY in own, PLAIN in own) == (True, False, True)
    # What the server counts is of all contracts together.
    assert [
        len(re.findall(r"^gpu_monitor_server_(?!nodes|silent)", text, re.M)) > 0 for text in (told, own)
    ] == [
        True,
        False,
    ]
    for path in (
        f"/api/nodes/{A}",
        f"/api/gpus/{BUSY}",
        f"/api/series?metric=energy&gpu={BUSY}",
        "/api/series?metric=energy&contract=100",
    ):
        assert asked.server.ask("GET", path, token=token).status == 404, path


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/nodes?nod=x", "query.nod"),
        ("/api/nodes?limit=0", "query.limit"),
        ("/api/nodes?limit=1001", "query.limit"),
        ("/api/nodes?node=%00", "query.node"),
        ("/api/nodes?cursor=AAAA", "query.cursor"),
        ("/api/nodes?cursor=%C3%A9", "query.cursor"),
        ("/api/gpus?cursor=WzFd", "query.cursor"),
        ("/api/gpus?cursor=WzEsOTk5OTk5OTk5OTk5XQ", "query.cursor"),
        ("/api/fleet?include=all", "query.include"),
        ("/api/events?from=never", "query.from"),
        ("/api/events?from=1969-01-01", "query.from"),
        ("/api/events?from=2024-01-02&to=2024-01-01", "query.from"),
        ("/api/events?from=99999999999", "query.from"),
        ("/api/usage?from=2000-01-01", "query.from"),
        ("/api/usage?price=nan", "query.price"),
        ("/api/usage?by=colour", "query.by"),
        ("/api/series", "query.metric"),
        ("/api/series?metric=uid", "query.metric"),
        ("/api/series?metric=energy&max_points=1", "query.max_points"),
        ("/api/series?metric=energy&gpu=a&node=b", "query.node"),
        ("/api/series?metric=throttle_reasons", "query.metric"),
        ("/api/series?metric=host.cpu_utilization", "query.metric"),
        ("/api/series?metric=energy&source=minutes", "query.source"),
        ("/api/reports/strip?from=-60d", "query.from"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused_by_name(asked: Asked, path: str, field: str) -> None:
    answer = asked.server.ask("GET", path)
    assert answer.status == 422, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["title"] == "The request is not valid"
    assert [error["field"].split(".")[:2] for error in problem["errors"]] == [field.split(".")]
    assert problem["errors"][0]["reason"]


def test_what_is_not_there_is_a_problem(asked: Asked) -> None:
    for path in ("/api/nodes/none", "/api/gpus/none", "/api/series?metric=energy&model=none"):
        answer = asked.server.ask("GET", path)
        assert (answer.status, json.loads(answer.body)["title"]) == (404, "Not found")


def test_times_are_taken_as_people_write_them(asked: Asked) -> None:
    stamp = asked.stamp(0)
    epoch = str(int(asked.known.at(0)))
    for written in (
        quote(stamp),
        stamp,
        quote(stamp[:19] + "Z"),
        stamp[:19],
        quote(stamp[:19].replace("T", " ")),
        epoch,
    ):
        answer = asked.server.ask(
            "GET", f"/api/usage?from={written}&to={quote(asked.stamp(4))}".replace(" ", "%20")
        )
        assert (answer.status, answer.json["since"]) == (200, stamp), written

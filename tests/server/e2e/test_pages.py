"""What machines and people read beside the questions: /metrics, /openapi.json, /docs, the first page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import latest, nodes
from tests.e2e.waiting import until
from tests.server.asking import Asked
from tests.server.fleet import add_contract, add_node
from tests.server.known import BUSY, PLAIN
from tests.server.posts import make_entry, make_report
from tests.server.rig import serving
from tests.server.runs import Segment, write_segment

GOLDEN = Path(__file__).parents[2] / "golden" / "openapi.json"
PROMTOOL = shutil.which("promtool")


def test_metrics_are_what_prometheus_takes(asked: Asked) -> None:
    if PROMTOOL is None:
        pytest.skip("there is no promtool here: install the package prometheus")
    text = asked.server.ask("GET", "/metrics").body
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_metrics_hold_what_counts_as_now(asked: Asked) -> None:
    answer = asked.server.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    labels = f'{{uid="{BUSY}",node="00000000-0000-4000-8000-00000000000a",contract="100",simulated="false"'
    assert f"gpu_monitor_power_usage_watts{labels}}} 350.25" in lines
    assert f"gpu_monitor_gpu_utilization_percent{labels}}} 90.5" in lines
    assert f'gpu_monitor_throttled{labels},reason="sw_power_cap"}} 1' in lines
    assert not [line for line in lines if PLAIN in line and line.startswith("gpu_monitor_power_usage_watts")]
    assert [line for line in lines if PLAIN in line and line.startswith("gpu_monitor_gpu_info")]
    assert 'simulated="true"' in answer.body.decode()
    assert "gpu_monitor_server_nodes 4" in lines
    assert "gpu_monitor_server_silent_agents 2" in lines
    assert "gpu_monitor_server_queue_reports 0" in lines


class _Page(HTMLParser):
    """What a page refers to and whether any of it is inline."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_come_from_this_machine_alone(asked: Asked, path: str) -> None:
    answer = asked.server.ask("GET", path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert not re.search(r"https?:", policy)
    page = _Page()
    page.feed(answer.body.decode())
    assert page.inline == []
    assert page.addresses
    for address in page.addresses:
        assert not address.startswith(("http", "//", "/")), "relative, so that it works behind a path"
        found = asked.server.ask("GET", f"/{address.lstrip('.')}")
        assert found.status == 200, address
        assert not re.search(rb"https?://(?!www\.w3\.org)", found.body), address


def test_the_first_page_says_how_many_report(asked: Asked) -> None:
    text = asked.server.ask("GET", "/").body.decode()
    # Of the three real nodes node-a speaks; of the four real GPUs one of its two gives values, the other hangs.
    assert "<dd>1 of 3</dd>" in text
    assert "<dd>1 of 4</dd>" in text
    assert "1 simulated GPU</strong> is not in" in text


def test_the_first_page_lists_nodes_gpus_and_their_week(asked: Asked) -> None:
    text = asked.server.ask("GET", "/").body.decode()
    assert (
        '<td data-name="Node">node-c</td><td data-name="Contract">200</td><td data-name="GPUs">1</td>' in text
    )
    assert text.count('<td data-name="Status">silent</td>') == 5  # node-b and node-c, and their three GPUs
    assert '<td data-name="Utilisation">90.5 %</td>' in text
    assert '<td data-name="Power">350.25 W</td><td data-name="Memory">20.0 of 80 GiB</td>' in text
    assert "driver hung" in text
    # Of node-a: four hours of one GPU, three and a half of the other, which idled throughout.
    assert '<td data-name="GPU-hours">7.5 h</td><td data-name="Idle">3.5 h</td>' in text
    assert '<td data-name="Energy">1.41 kWh</td>' in text  # 4 * 0.3 + 3.5 * 0.06
    assert "<h2>Alerts" in text


def test_where_all_is_simulated_it_is_shown_and_said_loudly(
    store: Store, database: str, tmp_path: Path
) -> None:
    add_node(store, add_contract(store, "100"), "00000000-0000-4000-8000-0000000000ff", 2, simulated=True)
    with store.write() as connection:
        now = time.time()
        connection.execute(update(nodes).values(last_live=now, last_report=now))
        connection.execute(update(latest).values(time=now))
    with serving(tmp_path, database=database) as server:
        text = server.ask("GET", "/").body.decode()
    assert "<strong>SIMULATED</strong> Every GPU here is simulated" in text
    assert "<dd>1 of 1</dd>" in text
    assert "<dd>2 of 2</dd>" in text
    assert "<dd>0.7 kW</dd>" in text  # 2 * 350.25 W


def test_a_browser_that_goes_astray_gets_a_page(asked: Asked) -> None:
    answer = asked.server.ask("GET", "/no/such<b>", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert b"<b>" not in answer.body
    assert b'href="../assets/page.css"' in answer.body
    plain = asked.server.ask("GET", "/no/such")
    assert (plain.status, plain.headers["content-type"]) == (404, "application/problem+json")


def test_the_first_page_of_an_empty_server_says_how_to_begin(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        text = server.ask("GET", "/").body.decode()
    assert "No node has reported yet" in text
    assert "<h2>Alerts" not in text


def test_the_first_page_shows_experiments_and_alerts_where_no_node_reports(
    store: Store, database: str, tmp_path: Path
) -> None:
    now = time.time()
    run = Segment("run-1", "<deep> net", "vision", now - 60).log(10, 3, loss=0.5).end(50, "failed")
    write_segment(store, "100", run, now)
    with serving(tmp_path, database=database) as server:
        firing = "/api/alerts?state=firing&rule=run-failed"
        until(lambda: server.ask("GET", firing).json["items"], "the alert of the run")
        (alert,) = server.ask("GET", firing).json["items"]
        page = server.ask("GET", "/").body.decode()
    assert (alert["experiment"], alert["experiment_name"], alert["node"]) == ("run-1", "<deep> net", None)
    assert "No node has reported yet" in page
    link = '<a href="api/experiments/run-1">&lt;deep&gt; net</a>'
    assert f'<td data-name="Experiment">{link}</td>' in page
    assert f'<td data-name="Rule">run-failed</td><td data-name="About">experiment {link}</td>' in page


def described(asked: Asked) -> dict[str, Any]:
    answer = asked.server.ask("GET", "/openapi.json")
    assert answer.status == 200
    found: dict[str, Any] = answer.json
    return found


def test_the_description_is_the_one_on_record(asked: Asked) -> None:
    """A change of the API shows in the change of this file; GPU_MONITOR_GOLDEN=write writes it."""
    text = json.dumps(described(asked), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("GPU_MONITOR_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_shape_that_is_named_is_described(asked: Asked) -> None:
    found = described(asked)
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert named <= set(found["components"]["schemas"])
    assert {"FleetNow", "FleetGpu", "SeriesAnswer", "UsageLine", "ProblemDetails"} <= named


def test_every_question_is_described_with_its_refusal(asked: Asked) -> None:
    wrong = []
    for path, methods in described(asked)["paths"].items():
        for method, one in methods.items():
            if not one.get("summary") or not one.get("description"):
                wrong.append(f"{method} {path} does not say what it is for")
    assert wrong == []


def test_the_agents_requests_are_described_with_what_they_are_answered(asked: Asked) -> None:
    found = described(asked)
    for path, body, answer in (
        ("/api/metrics", "ReportBody", "Taken"),
        ("/api/metrics/batch", "BatchBody", "BatchAnswer"),
        ("/api/samples", "LiveIn", "Greeting"),
    ):
        post, options = found["paths"][path]["post"], found["paths"][path]["options"]
        assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{body}")
        told = post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert told.endswith(f"/{answer}")
        assert {"401", "403", "408", "413", "415", "422", "503", "507"} <= set(post["responses"])
        assert "200" in options["responses"]
        greeting = asked.server.ask("OPTIONS", path).json
        assert set(found["components"]["schemas"]["Greeting"]["properties"]) == set(greeting)
        assert set(found["components"]["schemas"]["Accepts"]["properties"]) == set(greeting["accepts"])
    # What a report says of a GPU is the whole catalogue, and what an agent writes fits it.
    entry = found["components"]["schemas"]["ReportedGpu"]["properties"]
    assert set(make_entry()) <= set(entry)
    assert set(make_report()) == set(found["components"]["schemas"]["ReportBody"]["properties"])


def test_answers_are_of_the_shape_that_is_described(asked: Asked) -> None:
    schemas = described(asked)["components"]["schemas"]
    for path, shape, query in (
        ("/api/fleet", "FleetNow", {}),
        ("/api/usage", "UsageAnswer", {"since": 0, "to": 4}),
        ("/api/series", "SeriesAnswer", {"metric": "energy", "since": 0, "to": 4}),
        ("/api/reports", "ReportPage", {"since": 0, "to": 4}),
    ):
        answer = asked.get(path, **query)
        assert set(schemas[shape]["properties"]) == set(answer)
        item = schemas[shape]["properties"]["items"]["items"]["$ref"].rpartition("/")[2]
        assert set(schemas[item]["properties"]) == set(answer["items"][0])

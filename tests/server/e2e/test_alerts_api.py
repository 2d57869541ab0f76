"""/api/alerts, rules, silences, channels, deliveries of the real server: who may, what is refused, no secret given out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT
from tests.server.e2e.test_alerts_told import NODES, ON, SECRET, send
from tests.server.listeners import Listener, listening, mail_server
from tests.server.posts import CONTRACT
from tests.server.rig import Server, launch, serving

HOT = {"kind": "threshold", "settings": {"metric": "temperature", "limit": 40, "for_seconds": 0}}


@dataclass
class Asked:
    """A running server with one simulated and one real GPU that is lost."""

    server: Server
    admin: str
    agent: str
    reader: str

    def until(self, path: str, count: int) -> list[dict[str, Any]]:
        """The items of a list, once there are so many."""
        deadline = time.monotonic() + 30
        while True:
            items: list[dict[str, Any]] = self.server.ask("GET", path, None, self.admin).json["items"]
            if len(items) >= count or time.monotonic() > deadline:
                assert len(items) == count, items
                return items
            self.server.ended.wait(0.1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "rules.toml").write_text(
        '[too-hot]\nkind = "threshold"\nmetric = "temperature"\nlimit = 95\nseverity = "error"\nadvice = "Cool it."\n'
        '[gpu-held-idle]\nkind = "held"\nfor_seconds = 1800\nenabled = false\n'
    )
    with serving(folder, "--rules", "rules.toml", **ON) as server:
        agent = server.token("--contract", CONTRACT)
        found = Asked(
            server,
            server.token("--scope", "admin"),
            agent,
            server.token("--scope", "read", "--contract", CONTRACT),
        )
        send(server, NODES[0], "GPU lost", agent)
        send(server, NODES[1], "GPU lost", agent, simulated=True)
        found.until("/api/alerts?state=active&rule=gpu-lost", 2)
        yield found


def test_alerts_are_filtered_and_paged(asked: Asked) -> None:
    ask = asked.server.ask
    whole = ask("GET", "/api/alerts?rule=gpu-lost").json["items"]
    assert [(one["state"], one["severity"], one["contract_number"]) for one in whole] == [
        ("firing", "critical", CONTRACT)
    ] * 2
    assert {one["node"]: one["simulated"] for one in whole} == {NODES[0]: False, NODES[1]: True}
    assert all(one["advice"].startswith("Take the node out") for one in whole)
    for query, count in (
        ("state=firing", 2), ("state=resolved", 0), ("severity=critical", 2), ("severity=info", 0),
        (f"node={NODES[0]}", 1), ("node=host-01", 1), ("simulated=true", 1), ("simulated=false", 1), ("from=-1h", 2),
        ("to=-1h", 0),
    ):  # fmt: skip
        assert len(ask("GET", f"/api/alerts?rule=gpu-lost&{query}").json["items"]) == count, query
    first = ask("GET", "/api/alerts?rule=gpu-lost&limit=1").json
    second = ask("GET", f"/api/alerts?rule=gpu-lost&limit=1&cursor={first['next']}").json
    assert [first["items"][0]["id"], second["items"][0]["id"]] == [one["id"] for one in whole]
    assert second["next"] is None
    one = ask("GET", f"/api/alerts/{whole[0]['id']}")
    assert one.json == whole[0]
    table = ask("GET", "/api/alerts?rule=gpu-lost&format=csv").body.decode().splitlines()
    assert table[0].startswith("id,rule,state,severity,node,")
    assert len(table) == 3


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/alerts?state=lost", 422), ("/api/alerts?colour=1", 422), ("/api/alerts?cursor=x", 422),
        ("/api/alerts?from=tomorrowish", 422), ("/api/alerts/none", 404), ("/api/rules/none", 404),
        ("/api/channels", 401), ("/api/deliveries", 401),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(asked: Asked, path: str, status: int) -> None:
    answer = asked.server.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


def test_an_alert_is_acknowledged_by_name_and_by_those_who_may(asked: Asked) -> None:
    ask = asked.server.ask
    name = ask("GET", f"/api/alerts?rule=gpu-lost&node={NODES[0]}").json["items"][0]["id"]
    path = f"/api/alerts/{name}/acknowledged"
    assert ask("PUT", path, {}).status == 401
    assert ask("PUT", path, {}, asked.reader).status == 403
    assert ask("PUT", path, {}, asked.admin).status == 204
    assert ask("GET", f"/api/alerts/{name}").json["acknowledged_by"].startswith("token ")
    assert ask("PUT", path, {"acknowledged": False}, asked.admin).status == 204
    assert ask("GET", f"/api/alerts/{name}").json["acknowledged_by"] is None


def test_the_rules_of_the_file_are_there_beside_the_built_in_ones(asked: Asked) -> None:
    items = {one["id"]: one for one in asked.server.ask("GET", "/api/rules").json["items"]}
    assert {"gpu-lost", "xid-hardware", "node-silent", "report-late", "server-disk", "too-hot"} <= set(items)
    seeded = items["too-hot"]
    assert (seeded["severity"], seeded["advice"], seeded["builtin"]) == ("error", "Cool it.", False)
    assert seeded["settings"]["limit"] == 95
    held = items["gpu-held-idle"]
    assert (held["builtin"], held["enabled"], held["settings"]["for_seconds"]) == (True, False, 1800)


def test_a_rule_is_made_fires_and_its_removal_ends_its_alerts(asked: Asked) -> None:
    ask = asked.server.ask
    send(asked.server, NODES[2], "ok", asked.agent)
    assert ask("PUT", "/api/rules/warm", HOT, asked.admin).status == 204
    found = asked.until(f"/api/alerts?rule=warm&state=firing&node={NODES[2]}", 1)
    assert found[0]["message"].startswith("temperature is 50 °C, above 40")
    assert ask("PATCH", "/api/rules/warm", {"enabled": False}, asked.admin).status == 204
    over = asked.until(f"/api/alerts?rule=warm&state=resolved&node={NODES[2]}", 1)
    assert over[0]["ending"] == "the rule was changed or switched off"
    assert ask("DELETE", "/api/rules/warm", None, asked.admin).status == 204
    assert ask("GET", "/api/rules/warm").status == 404


@pytest.mark.parametrize(
    ("name", "body", "who", "status"),
    [
        ("warm", HOT, None, 401), ("warm", HOT, "reader", 403), ("Warm!", HOT, "admin", 422),
        ("warm", {"kind": "threshold", "settings": {"metric": "tempo", "limit": 1}}, "admin", 422),
        ("warm", {"kind": "nothing"}, "admin", 422), ("warm", {**HOT, "severity": "awful"}, "admin", 422),
        ("warm", {**HOT, "contract_number": "nobody's"}, "admin", 422), ("warm", {**HOT, "x": 1}, "admin", 422),
    ],
)  # fmt: skip
def test_rules_that_are_refused(asked: Asked, name: str, body: object, who: str | None, status: int) -> None:
    token = None if who is None else getattr(asked, who)
    answer = asked.server.ask("PUT", f"/api/rules/{name}", body, token)
    assert answer.status == status, answer.body
    assert asked.server.ask("GET", "/api/rules/warm").status == 404


def test_the_rule_of_the_docs_is_taken(asked: Asked) -> None:
    page = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"curl -X PUT \S+/api/rules/too-much-power .*?-d '(.*?)'", page, re.DOTALL)
    assert asked.server.ask("PUT", "/api/rules/docs", json.loads(body), asked.admin).status == 204
    assert asked.server.ask("GET", "/api/rules/docs").json["settings"]["limit"] == 690
    assert asked.server.ask("DELETE", "/api/rules/docs", None, asked.admin).status == 204


def test_settings_beside_the_kind_are_told_where_they_go(asked: Asked) -> None:
    flat = {"kind": "threshold", "metric": "power_usage", "limit": 690, "severity": "awful"}
    answer = asked.server.ask("PUT", "/api/rules/warm", flat, asked.admin)
    assert answer.status == 422
    reasons = {one["field"]: one["reason"] for one in answer.json["errors"]}
    assert set(reasons) == {"body.metric", "body.limit", "body.severity"}
    assert reasons["body.metric"].endswith("the settings of a kind go under settings")
    assert "'warning'" in reasons["body.severity"]
    flat = {"kind": "slack", "settings": {}, "url": "https://hooks.example/secret"}
    answer = asked.server.ask("PUT", "/api/channels/chat", flat, asked.admin)
    assert answer.status == 422
    assert "go under settings" in answer.json["detail"]
    assert b"secret" not in answer.body


def test_a_built_in_rule_is_switched_off_not_removed(asked: Asked) -> None:
    ask = asked.server.ask
    assert ask("DELETE", "/api/rules/clock-skew", None, asked.admin).status == 409
    assert (
        ask("PATCH", "/api/rules/clock-skew", {"enabled": False, "severity": "info"}, asked.admin).status
        == 204
    )
    one = ask("GET", "/api/rules/clock-skew").json
    assert (one["enabled"], one["severity"], one["builtin"]) == (False, "info", True)


def test_silences_are_made_listed_and_ended(asked: Asked) -> None:
    ask = asked.server.ask
    assert ask("POST", "/api/silences", {"seconds": 60}).status == 401
    assert ask("POST", "/api/silences", {"seconds": 60}, asked.reader).status == 403
    for wrong in (
        {},
        {"seconds": -1},
        {"seconds": 60, "end": "2100-01-01"},
        {"end": "2020-01-01"},
        {"seconds": 4e7},
    ):
        assert ask("POST", "/api/silences", wrong, asked.admin).status == 422, wrong
    made = ask("POST", "/api/silences", {"rule": "too-hot", "subject": NODES[5], "seconds": 600}, asked.admin)
    assert (made.status, made.json["active"], made.json["subject"]) == (201, True, NODES[5])
    name = made.json["id"]
    assert [one["id"] for one in ask("GET", "/api/silences").json["items"]] == [name]
    assert ask("DELETE", f"/api/silences/{name}", None, asked.reader).status == 403
    assert ask("DELETE", f"/api/silences/{name}", None, asked.admin).status == 204
    assert ask("GET", "/api/silences").json["items"] == []
    assert [one["id"] for one in ask("GET", "/api/silences?all=true").json["items"]] == [name]
    assert ask("DELETE", f"/api/silences/{name}", None, asked.admin).status == 404


def test_a_silence_may_be_about_an_experiment_and_a_refusal_says_so(asked: Asked) -> None:
    ask = asked.server.ask
    wrong = ask("POST", "/api/silences", {"subject": "resnet", "seconds": 60}, asked.admin)
    assert wrong.status == 422
    assert "experiment/ and an experiment's id" in wrong.json["errors"][0]["reason"]
    made = ask("POST", "/api/silences", {"subject": "experiment/run-1", "seconds": 60}, asked.admin)
    assert (made.status, made.json["subject"]) == (201, "experiment/run-1")
    assert ask("DELETE", f"/api/silences/{made.json['id']}", None, asked.admin).status == 204


def put(asked: Asked, name: str, kind: str, **settings: object) -> int:
    body = {"kind": kind, "settings": settings}
    return asked.server.ask("PUT", f"/api/channels/{name}", body, asked.admin).status


def test_each_kind_of_channel_is_tried_and_logged(asked: Asked) -> None:
    ask = asked.server.ask
    with listening() as listener, mail_server() as (mailbox, port):
        url = f"http://127.0.0.1:{listener.port}/services/T000/B000/secretpath"
        assert put(asked, "chat", "slack", url=url) == 204
        assert put(asked, "hook", "webhook", url=url, secret=SECRET) == 204
        mail = {"host": "127.0.0.1", "port": port, "sender": "gpus@example.com", "to": ["me@example.com"]}
        assert put(asked, "mail", "email", **mail) == 204
        for name in ("chat", "hook", "mail"):
            tested = ask("POST", f"/api/channels/{name}/test", None, asked.admin)
            assert (tested.status, tested.json["ok"]) == (200, True), tested.body
        check_received(listener)
        assert b"[TEST] INFO: test on the server" in mailbox.got[0].content
    logged = ask("GET", "/api/deliveries?channel=mail", None, asked.admin).json["items"]
    assert [(one["ok"], one["status"], one["alert"]) for one in logged] == [(True, "test: accepted", None)]
    shown = ask("GET", "/api/channels", None, asked.admin)
    assert b"secretpath" not in shown.body
    assert SECRET.encode() not in shown.body
    assert "secretpath" not in asked.server.said
    for name in ("chat", "hook", "mail"):
        assert ask("DELETE", f"/api/channels/{name}", None, asked.admin).status == 204


def check_received(listener: Listener) -> None:
    chat, hook = listener.got
    assert chat.json["text"] == "[TEST] INFO: test on the server"
    assert "Nothing is wrong" in chat.json["blocks"][0]["text"]["text"]
    (notice,) = hook.json["alerts"]
    assert (notice["test"], notice["rule"]) == (True, "test")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("slack", {"url": "ftp://hooks.example/x"}), ("slack", {"url": "https://user:pw@hooks.example/x"}),
        ("slack", {"url": "https://hooks.example/x\r\nX-Evil: 1"}), ("webhook", {"url": "https://hooks.example/x"}),
        ("webhook", {"url": "https://hooks.example/x", "secret": "short"}),
        ("email", {"host": "mail.example", "sender": "a@b.example", "to": []}),
        ("email", {"host": "mail.example", "sender": "a@b.example\r\nBcc: x@y", "to": ["a@b.example"]}),
        ("email", {"host": "mail.example", "sender": "a@b.example", "to": ["a@b.example"], "user": "alone"}),
        ("apprise", {"url": "json://127.0.0.1/"}), ("apprise", {"url": "file:///etc/passwd"}),
        ("apprise", {"url": "syslog://localhost"}), ("apprise", {"url": "dbus://localhost"}),
        ("pager", {"url": "https://x.example/"}),
    ],
)  # fmt: skip
def test_channels_that_are_refused(asked: Asked, kind: str, settings: dict[str, object]) -> None:
    answer = asked.server.ask("PUT", "/api/channels/x", {"kind": kind, "settings": settings}, asked.admin)
    assert answer.status == 422, answer.body
    assert b"user:pw" not in answer.body
    assert asked.server.ask("GET", "/api/channels", None, asked.admin).json["items"] == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("webhook", {"url": "https://169.254.169.254/latest", "secret": SECRET}),
        ("slack", {"url": "https://[fd00::1]/x"}),
        ("email", {"host": "10.1.2.3", "sender": "a@b.example", "to": ["a@b.example"]}),
    ],
)
def test_a_channel_to_a_private_address_is_refused_at_once(
    asked: Asked, kind: str, settings: dict[str, object]
) -> None:
    answer = asked.server.ask("PUT", "/api/channels/x", {"kind": kind, "settings": settings}, asked.admin)
    assert answer.status == 422, answer.body
    assert "is in a private or local network" in answer.json["detail"]
    assert "NOTIFY_ALLOW=" in answer.json["detail"]


def faults(asked: Asked, path: str, body: object, method: str = "PUT") -> dict[str, str]:
    answer = asked.server.ask(method, path, body, asked.admin)
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    assert b"$." not in answer.body
    assert answer.json["detail"]
    return {one["field"]: one["reason"] for one in answer.json["errors"]}


def test_every_fault_of_a_rule_is_said_with_the_choices(asked: Asked) -> None:
    settings = {"when": "abov", "for_secconds": 60, "stat": 7, "only": "a"}
    assert faults(asked, "/api/rules/warm", {"kind": "threshold", "settings": settings}) == {
        "settings.metric": "missing; threshold needs it",
        "settings.limit": "missing; threshold needs it",
        "settings.when": "one of above, below; did you mean above?",
        "settings.for_secconds": "no setting of threshold; one of only, metric, when, limit, for_seconds, stat, of;"
        " did you mean for_seconds?",
        "settings.stat": "one of mean, min, max",
        "settings.only": "expected array, got str",
    }
    (kind,) = faults(asked, "/api/rules/warm", {"kind": "treshold"}).items()
    assert kind[0] == "kind"
    assert kind[1].startswith("one of threshold, silent, ")
    assert kind[1].endswith("did you mean threshold?")


def test_every_fault_of_a_silence_is_said_with_the_choices(asked: Asked) -> None:
    def told(**wanted: object) -> dict[str, str]:
        return faults(asked, "/api/silences", wanted, "POST")

    found = told(rule="node-silnt", subject="gpu-05", contract_number="99", start="soon")
    assert set(found) == {"rule", "subject", "contract_number", "start", "end"}
    assert found["rule"].startswith("one of ")
    assert found["rule"].endswith("; did you mean node-silent?")
    subjects = "a node's id, an id with / and a GPU's uid, experiment/ and an experiment's id, or server"
    assert found["subject"] == subjects
    assert found["contract_number"] == "no node reports under it"
    assert found["start"].startswith("not a time: 'soon'; write 2024-03-20T14:00:00Z")
    assert found["end"] == "missing; end or seconds says when it ends"
    assert told(seconds=60, end="2100-01-01") == {"end": "either end or seconds, not both"}
    assert told(end="2020-01-01")["end"].startswith("it would be over: it is 20")
    assert told(end="2190-01-01") == {"end": "at most 366 days from now"}
    assert told(start="2100-01-01", seconds=60) == {"seconds": "at most 366 days from now"}
    assert told(end="2190-01-01", start="2191-01-01") == {"end": "at most 366 days from now"}
    assert told(start="+3h", end="+2h") == {"start": "not before the end"}


def test_every_fault_of_a_channel_is_said_and_no_secret_repeated(asked: Asked) -> None:
    found = faults(
        asked, "/api/channels/x", {"kind": "webhook", "settings": {"secret": "short", "least": "eror"}}
    )
    assert set(found) == {"settings.url", "settings.secret", "settings.least"}
    assert found["settings.least"] == "one of info, warning, error, critical; did you mean error?"
    assert "16" in found["settings.secret"]
    assert "short" not in str(found)


def test_the_description_holds_the_settings_of_each_kind(asked: Asked) -> None:
    schemas = asked.server.ask("GET", "/openapi.json").json["components"]["schemas"]
    rule, channel = (schemas[name]["properties"] for name in ("WantedRule", "WantedChannel"))
    each = {one["title"]: one for one in rule["settings"]["anyOf"]}
    assert len(each) == len(rule["kind"]["enum"]) == 15
    assert each["settings of threshold"]["required"] == ["metric", "limit"]
    assert each["settings of threshold"]["properties"]["when"]["enum"] == ["above", "below"]
    assert [one["title"].split()[-1] for one in channel["settings"]["anyOf"]] == [
        "slack",
        "webhook",
        "email",
        "apprise",
    ]


def test_apprise_channels_say_that_addresses_are_not_checked(asked: Asked) -> None:
    assert put(asked, "team", "apprise", url="discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js") == 204
    (shown,) = asked.server.ask("GET", "/api/channels", None, asked.admin).json["items"]
    assert (shown["address_checked"], shown["settings"]["url"]) == (False, "discord://***")
    assert asked.server.ask("DELETE", "/api/channels/team", None, asked.admin).status == 204


def test_a_rules_file_that_is_wrong_ends_the_start_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[hot]\nkind = "threshold"\nmetric = "temperatur"\nlimit = 1\n')
    server = launch(tmp_path, "--rules", "rules.toml")
    assert server.ended.wait(60)
    assert server.process.wait(60) == 78
    assert "rules.toml: rule hot: metric: 'temperatur' is not measured of a gpu" in server.said
    assert server.output is not None
    server.output.close()

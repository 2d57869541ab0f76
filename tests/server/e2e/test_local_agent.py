"""The real agent beside the real server, with nothing configured but the address."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.program import configure, environment, query, running
from tests.e2e.waiting import until
from tests.server.rig import serving


def sent(folder: Path) -> int:
    """Reports that the agent knows to be acknowledged."""
    store = folder / "gpu_metrics.db"
    if not store.exists() or not query(store, "SELECT 1 FROM sqlite_master WHERE name = 'reports'"):
        return 0
    return int(query(store, "SELECT count(*) FROM reports WHERE state = 'sent'")[0][0])


def test_an_agent_of_the_same_user_needs_no_token(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    with serving(tmp_path) as server:
        url = f"http://localhost:{server.port}/api/metrics"
        configure(agent, server={"url": url, "contract_number": "12345", "spread_seconds": 5})
        words = ("--simulate", "2", "--speed", "2000", "--start", "-4h")
        state = environment(tmp_path)["HOME"] + "/.local/state"
        with running(agent, *words, XDG_STATE_HOME=state):
            until(lambda: sent(agent) >= 2, "two hours are acknowledged")
        shown = server.ask("GET", "/api/nodes")
        assert [node["contract_number"] for node in shown.json["items"]] == ["12345"]
        assert server.stop() == 0


def test_the_name_in_the_configuration_is_the_name_in_reports(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    with serving(tmp_path) as server:
        url = f"http://localhost:{server.port}/api/metrics"
        configure(
            agent,
            server={"url": url, "contract_number": "12345", "spread_seconds": 5},
            node={"name": "rack-7 left"},
        )
        words = ("--simulate", "1", "--speed", "2000", "--start", "-3h")
        with running(agent, *words, XDG_STATE_HOME=environment(tmp_path)["HOME"] + "/.local/state"):
            until(lambda: sent(agent) >= 1, "an hour is acknowledged")
        assert [node["hostname"] for node in server.ask("GET", "/api/nodes").json["items"]] == ["rack-7 left"]
        assert query(agent / "gpu_metrics.db", "SELECT DISTINCT hostname FROM runs") == [("rack-7 left",)]
        assert server.stop() == 0


def test_without_that_token_nothing_is_written_on_loopback_either(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.ask("POST", "/api/metrics", {}).status == 401

"""Channels through apprise, for real: it sends to a Mattermost that is a listener of ours."""

from __future__ import annotations

import warnings

import pytest

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.notify.client import NotDelivered
from gpu_monitor.server.notify.kinds import AppriseSpec, convert_channel, is_checked, shown
from gpu_monitor.server.notify.notice import Notice
from gpu_monitor.server.notify.others import send
from tests.server.listeners import listening

TOKEN = "3ccdd113474722377935511fc85d3dd4"
NOTICE = Notice(
    id="a", moment="fired", rule="hot", severity="error", node="n", hostname="h", gpu="G", gpu_name="H100",
    contract_number="1", message="It is hot.", advice="Cool it.", value=95.0, since="2024-03-20T14:00:00+00:00",
    fired=None, resolved=None, simulated=False,
)  # fmt: skip


def channel(port: int) -> AppriseSpec:
    spec = convert_channel({"kind": "apprise", "url": f"mmost://127.0.0.1:{port}/{TOKEN}"})
    assert isinstance(spec, AppriseSpec)
    return spec


@pytest.fixture(autouse=True, scope="module")
def _others_warnings() -> None:
    """What apprise and its parts warn of when they are imported is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apprise

        assert apprise.Apprise().add(f"mmost://127.0.0.1:1/{TOKEN}")


def test_a_notice_arrives() -> None:
    with listening() as listener:
        assert send(channel(listener.port), [NOTICE]) == "accepted"
        (got,) = listener.wait_for(1)
    assert got.path == f"/hooks/{TOKEN}"
    assert "ERROR: hot on h H100 G" in got.json["text"]
    assert "Cool it." in got.json["text"]


def test_a_refusal_is_said_without_the_secret() -> None:
    with listening(status=500) as listener, pytest.raises(NotDelivered, match="did not take it") as refused:
        send(channel(listener.port), [NOTICE])
    assert TOKEN not in str(refused.value)


def test_a_channel_says_that_its_addresses_are_not_checked_and_shows_no_secret() -> None:
    spec = channel(1)
    assert not is_checked(spec)
    assert shown(spec) == {"least": "info", "url": "mmost://***"}


@pytest.mark.parametrize(
    "scheme", ["json", "xml", "form", "file", "syslog", "dbus", "exec", "mailto", "macosx", "x"]
)
def test_what_could_ask_or_run_anything_is_refused(scheme: str) -> None:
    with pytest.raises(UsageError, match="not among the services"):
        convert_channel({"kind": "apprise", "url": f"{scheme}://127.0.0.1/x"})

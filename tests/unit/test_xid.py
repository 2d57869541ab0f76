"""Xid knowledge, held against NVIDIA's catalogue as read by hand."""

from __future__ import annotations

import pytest

from gpu_monitor.core.xid import EVENT_KIND, XIDS, Action, explain, xid_event

# "Resolution Bucket (Immediate Action)" of the catalogue at
# https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, typed from that page.
RESET_GPU = (46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158)
RESTART_APP = (
    8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94,
    96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139,
)  # fmt: skip
IGNORE = (14, 37, 38, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 141, 152, 153, 160, 161)
UNUSED_AND_NEVER_NAMED = (5, 10, 15, 17, 23, 49, 50, 51, 52, 53, 55, 87, 90, 91)


@pytest.mark.parametrize("number", RESET_GPU)
def test_what_nvidia_resets_is_reset(number: int) -> None:
    assert explain(number).action is Action.RESET_GPU
    assert explain(number).severity in ("warning", "error", "critical")


@pytest.mark.parametrize("number", RESTART_APP)
def test_what_nvidia_restarts_is_restarted(number: int) -> None:
    assert explain(number).action in (Action.RESTART_APPLICATION, Action.CHECK_APPLICATION)


@pytest.mark.parametrize("number", IGNORE)
def test_what_nvidia_ignores_alarms_nobody(number: int) -> None:
    assert explain(number).action in (Action.IGNORE, Action.MONITOR)
    assert explain(number).severity in ("info", "warning")


def test_fallen_off_the_bus_wants_a_reboot_and_is_critical() -> None:
    xid = explain(79)
    assert xid.action is Action.REBOOT_NODE
    assert xid.severity == "critical"
    assert "off the bus" in xid.meaning


@pytest.mark.parametrize("number", UNUSED_AND_NEVER_NAMED + (173, 999, 0, -1))
def test_a_number_without_meaning_is_said_to_have_none(number: int) -> None:
    xid = explain(number)
    assert xid.number == number
    assert number not in XIDS
    assert "no meaning" in xid.meaning
    assert xid.severity == "warning"


def test_every_documented_number_is_there_once_with_a_sentence_of_advice() -> None:
    # The catalogue ends at 172; 14 numbers were never given a meaning by it or by the older list.
    assert set(XIDS) == set(range(1, 173)) - set(UNUSED_AND_NEVER_NAMED)
    for number, xid in XIDS.items():
        assert xid.number == number
        assert xid.meaning and not xid.meaning.endswith(".")
        assert xid.advice.endswith(".")
        assert xid.severity in ("info", "warning", "error", "critical")


@pytest.mark.parametrize(
    ("text", "action", "severity"),
    [
        (
            "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
            "reboot_node",
            "critical",
        ),
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", "reset_gpu", "error"),
        ("GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", "ignore", "info"),
        ("GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", "drain", "error"),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", "drain", "error"),
        ("GPU recovery action changed from 0x0 (None) to 0x9 (Pray)", "follow_other_xid", "warning"),
        ("", "follow_other_xid", "warning"),
    ],
)
def test_xid_154_takes_its_action_from_its_text(text: str, action: str, severity: str) -> None:
    xid = explain(154, text)
    assert (xid.action.value, xid.severity) == (action, severity)


def test_other_xids_do_not_take_an_action_from_their_text() -> None:
    assert explain(31, "changed from 0x0 (None) to 0x2 (Node Reboot Required)") == explain(31)


def test_the_copy_engines_are_numbered_as_the_driver_numbers_them() -> None:
    # nverror.h of NVIDIA's open kernel modules: CE0..2 = 39..41, CE3..5 = 70..72, CE6..8 = 75..77, CE9 = 85,
    # and the catalogue: CE10..19 = 126..135.
    engines = {39: 0, 41: 2, 70: 3, 72: 5, 75: 6, 77: 8, 85: 9, 126: 10, 135: 19}
    assert {
        number: f"copy engine {n} " in explain(number).meaning + " " for number, n in engines.items()
    } == (dict.fromkeys(engines, True))


def test_the_event_holds_what_is_known_and_nothing_else() -> None:
    event = xid_event(
        1700000000.0, 79, uid="GPU-1", pci_bus_id="00000000:3B:00.0", text="gone", via="kernel_log"
    )
    assert (event.time, event.kind, event.uid, event.severity) == (
        1700000000.0,
        EVENT_KIND,
        "GPU-1",
        "critical",
    )
    assert event.message.startswith("Xid 79: ")
    assert set(event.detail) == {"xid", "meaning", "action", "advice", "pci_bus_id", "text", "via"}
    assert event.detail["action"] == "reboot_node"
    assert event.detail["via"] == "kernel_log"

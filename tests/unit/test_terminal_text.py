"""Names that would move a terminal's cursor, ring it or turn its lines round: cleaned where they come in and go out."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pytest

from gpu_monitor.agent.ask import Group
from gpu_monitor.agent.sends import SendRow
from gpu_monitor.cli.output import groups_csv, groups_json, json_text, table
from gpu_monitor.cli.sends import print_detail, print_list
from gpu_monitor.core.spreadsheet import cell
from gpu_monitor.core.terminal_text import CONTROLS, clean, clean_lines, clean_name, escape_json
from gpu_monitor.sources.gpu.nvml_child.library import Library
from gpu_monitor.sources.recorded.cells import Dimension, parse_cell
from gpu_monitor.sources.recorded.devices import RowSkipped, device_of, parse_uuid

EVIL = "\x1b]0;pwned\x07H100\u202eBH 08\u2066 \x9b31mred\x7f"
SHOWN = "]0;pwned H100 BH 08 31mred"
RAISED = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


def test_every_control_and_direction_mark_is_known() -> None:
    assert all(CONTROLS.match(chr(code)) for code in RAISED)
    cleaned = {chr(code) for code in range(0x11000) if CONTROLS.match(chr(code))}
    assert {unicodedata.category(one) for one in cleaned} == {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    "text", ["NVIDIA H100 80GB HBM3", "کارت\u200cگرافیک", "ＧＰＵ 显卡", "\U0001f600", ""]
)
def test_other_text_stays(text: str) -> None:
    assert (clean(text), clean_name(text), cell(text), escape_json(text)) == (text,) * 4


def test_imported_names_are_clean() -> None:
    device = device_of({"name": EVIL, "serial": f"12{EVIL}", "index": "0", "pci_bus_id": "00:\x1b0A"})
    assert (device.name, device.serial, device.pci_bus_id) == (SHOWN, f"12 {SHOWN}", "00: 0A")
    assert device_of({}, loose=EVIL).name == SHOWN
    assert device_of({"name": "\x1b\x07"}).name is None
    assert parse_cell(f"535.1{EVIL}", "driver_version", Dimension.TEXT).value == f"535.1 {SHOWN}"


class EvilDriver(Library):
    """A driver whose every text is evil; it fills the buffer it is given, as NVML does."""

    def call(self, name: str, *args: object) -> int:
        *_, buffer, size = args
        buffer.value = EVIL.encode()  # type: ignore[attr-defined]
        assert len(EVIL.encode()) < size.value  # type: ignore[attr-defined]
        return 0


def test_the_drivers_names_are_clean() -> None:
    assert EvilDriver([0] * 8).text("nvmlDeviceGetName", None) == SHOWN  # type: ignore[arg-type]


@pytest.mark.parametrize("letter", ["\x1b", "\x07", "\u202e", "\u2066", "\x9b"])
def test_a_uuid_with_a_control_character_is_none(letter: str) -> None:
    with pytest.raises(RowSkipped):
        parse_uuid(f"IMPORT-a{letter}b-0")


def test_csv_and_tables_hold_no_control_character() -> None:
    # A store of an earlier release may hold such names.
    stream = io.StringIO()
    groups_csv([Group(0, ({"name": EVIL},))], ["name"], stream)
    assert not CONTROLS.search(stream.getvalue().replace("\n", ""))
    assert next(csv.reader([stream.getvalue().splitlines()[1]]))[1] == " ]0;pwned H100 BH 08   31mred "
    assert cell("=\x1b[1m") == "'= [1m"
    assert cell("\t=1") == "' =1"
    assert cell(["a\x1b", "b"]) == "a ;b"
    out = io.StringIO()
    table(["name"], [[EVIL]], out)
    assert not CONTROLS.search(out.getvalue().replace("\n", ""))


def test_json_reads_back_as_it_is_in_one_line_or_many() -> None:
    value = {"a\nb": [EVIL, "\udcff", {"c": 1.5, "d": None, "é": "é"}]}
    for indent in (None, 1):
        text = json_text(value, indent)
        assert not CONTROLS.search(text.replace("\n", ""))
        assert json.loads(text) == value
        assert text.encode()  # no half of a pair is left that could not be printed
        assert '"é": "é"' in text
    assert len(json_text(value).splitlines()) == 1


def test_messages_keep_their_lines() -> None:
    assert clean_lines("what\x1b[2J failed\n  on \u202ewhat\r") == "what [2J failed\n  on  what "


SENT = SendRow(1_710_943_200, 3600, 2, 1_710_946_800.0, 1_710_946_900.0, f"no: {EVIL}", EVIL, "sent", 1, None)


def test_what_a_server_said_is_shown_and_cannot_command_the_terminal() -> None:
    for show in (lambda *a, **k: print_list([a[0]], a[1], **k), print_detail):
        text, records = io.StringIO(), io.StringIO()
        show(SENT, text)
        show(SENT, records, as_json=True)
        assert not CONTROLS.search((text.getvalue() + records.getvalue()).replace("\n", ""))
        assert f"no: {SHOWN}" in text.getvalue()
        found = json.loads(records.getvalue())
        record = found[0] if isinstance(found, list) else found
        assert (record["last_error"], record["uid"]) == (SENT.last_error, EVIL)


def test_json_reads_back_as_stored_and_is_printed_escaped() -> None:
    stream = io.StringIO()
    groups_json([Group(0, ({"name": EVIL},))], stream)
    assert not CONTROLS.search(stream.getvalue().replace("\n", ""))
    assert json.loads(stream.getvalue())[0]["gpus"] == [{"name": EVIL}]

"""`nvidia-smi -q -x`: the real documents against the standard library's tree, loops, cuts and bombs."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.core.model import Status
from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.sniff import Format
from tests.recordings import recording

UTC = timezone.utc
MIB = 1 << 20

RECORDED = {
    "telegraf_a100-sxm4-v12": 1, "telegraf_a10g": 1, "telegraf_gtx-1070-ti": 1, "telegraf_gtx-1660-ti": 1,
    "telegraf_quadro-p400": 1, "telegraf_rtx-3080-v12": 1, "telegraf_rtx-3090-v12": 1, "telegraf_tesla-t4": 1,
    "k8stestinfra_qx-h100": 8, "k8stestinfra_qx-l40s": 1, "k8stestinfra_qx-gb200": 4,
    "k8stestinfra_mock_qx-gb200-lost": 2, "pai_gtx1070_384": 2,
}  # fmt: skip
"""GPUs in each document, counted with grep; attached_gpus says otherwise in two of them."""

ONE = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <timestamp>Fri May  1 10:00:00 2026</timestamp>
  <driver_version>580.65.06</driver_version>
  <gpu id="00000000:01:00.0">
    <product_name>A</product_name>
    <uuid>GPU-513536b6-7d19-9063-b049-1e69664bb298</uuid>
    <utilization><gpu_util>7 %</gpu_util></utilization>
  </gpu>
</nvidia_smi_log>
"""


def read(path: Path, options: ReadOptions | None = None) -> tuple[list[RecordedRow], Findings]:
    """All rows of a log, read as UTC unless `options` say otherwise."""
    findings = Findings()
    with RecordedLog(path, options or ReadOptions(timezone=UTC)) as log:
        assert log.format is Format.XML
        return list(log.rows(findings)), findings


def read_text(folder: Path, text: str, options: ReadOptions | None = None):  # type: ignore[no-untyped-def]
    """All rows of a log with this content."""
    path = folder / "log.xml"
    path.write_text(text, encoding="utf-8")
    return read(path, options)


def number(gpu: ElementTree.Element, path: str) -> float | None:
    """The number an element begins with; None for N/A and absent ones."""
    match = re.match(r"-?\d+(\.\d+)?", (gpu.findtext(path) or "").strip())
    return float(match[0]) if match else None


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_documents_against_a_tree(name: str) -> None:
    path = recording(f"xml/{name}.xml")
    rows, findings = read(path)
    root = ElementTree.parse(path).getroot()
    gpus = root.findall("gpu")
    assert len(rows) == len(gpus) == RECORDED[name]
    assert not findings.skipped
    for row, gpu in zip(rows, gpus, strict=True):
        if root.findtext("timestamp"):
            written = f"{root.findtext('timestamp')} +0000"
            assert row.time == datetime.strptime(written, "%a %b %d %H:%M:%S %Y %z").timestamp()
        assert row.device.name == gpu.findtext("product_name")
        assert row.values.get("driver_version") == root.findtext("driver_version")
        memory = "fb_memory_usage"
        for metric, element, scale in (
            ("temperature", "temperature/gpu_temp", 1),
            ("memory_temperature", "temperature/memory_temp", 1),
            ("memory_used", f"{memory}/used", MIB),
            ("memory_free", f"{memory}/free", MIB),
            ("memory_reserved", f"{memory}/reserved", MIB),
            ("gpu_utilization", "utilization/gpu_util", 1),
            ("memory_utilization", "utilization/memory_util", 1),
            ("encoder_utilization", "utilization/encoder_util", 1),
            ("fan_speed", "fan_speed", 1),
            ("graphics_clock", "clocks/graphics_clock", 1),
            ("sm_clock", "clocks/sm_clock", 1),
            ("memory_clock", "clocks/mem_clock", 1),
            ("video_clock", "clocks/video_clock", 1),
            ("pcie_rx", "pci/rx_util", 1000),
            ("pcie_tx", "pci/tx_util", 1000),
        ):
            written = number(gpu, element)
            expected = None if written is None else written * scale
            assert row.values.get(metric) == expected, (metric, gpu.findtext(element))
        total = number(gpu, f"{memory}/total")
        assert row.device.memory_total == (None if total is None else total * MIB)
        power = [
            number(gpu, element)
            for element in (
                "gpu_power_readings/average_power_draw",
                "gpu_power_readings/power_draw",
                "power_readings/power_draw",
            )
        ]
        assert row.values.get("power_usage") == next((watts for watts in power if watts is not None), None)


def test_a_lost_gpu_is_lost_and_its_neighbour_is_not() -> None:
    rows, _ = read(recording("xml/k8stestinfra_mock_qx-gb200-lost.xml"))
    assert [row.status for row in rows] == [Status.OK, Status.LOST]
    assert rows[0].values["power_usage"] == 618.35
    assert rows[1].reasons["temperature"] == "lost"


def test_mig_parent_has_no_utilisation_and_its_instances_are_said_to_be_left_out() -> None:
    rows, findings = read(recording("xml/telegraf_a100-sxm4-v12.xml"))
    assert rows[0].values["mig_mode"] == "on"
    assert rows[0].reasons["gpu_utilization"] == "unsupported"
    assert any("MIG instances" in note for note in findings.notes)


def test_a_document_without_a_time_takes_the_files_own_and_says_so(tmp_path: Path) -> None:
    copy = tmp_path / "copy.xml"
    copy.write_bytes(recording("xml/telegraf_gtx-1070-ti.xml").read_bytes())
    os.utime(copy, (1_700_000_000, 1_700_000_000))
    rows, findings = read(copy)
    assert [row.time for row in rows] == [1_700_000_000]
    assert any("time of change" in note for note in findings.notes)
    rows, _ = read(copy, ReadOptions(start=1_600_000_000.0))
    assert [row.time for row in rows] == [1_600_000_000]


def test_a_loop_of_documents_with_and_without_times(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path, ONE + ONE.replace("10:00:00", "10:00:05") + "\n" + ONE.replace("10:00", "10:01")
    )
    assert [row.time % 3600 for row in rows] == [0, 5, 60]
    assert [row.line for row in rows] == [6, 17, 29]
    assert not findings.skipped
    timeless = ONE.replace("  <timestamp>Fri May  1 10:00:00 2026</timestamp>\n", "")
    with pytest.raises(LogUnreadable, match="--start"):
        read_text(tmp_path, timeless * 3)
    rows, _ = read_text(tmp_path, timeless * 3, ReadOptions(start=1_600_000_000.0, step=5.0))
    assert [row.time - 1_600_000_000 for row in rows] == [0, 5, 10]


def test_a_cut_document_gives_its_complete_gpus(tmp_path: Path) -> None:
    second = ONE.replace("00000000:01:00.0", "00000000:02:00.0").replace("10:00:00", "10:00:05")
    rows, findings = read_text(tmp_path, ONE + second[: second.index("</utilization>")])
    assert len(rows) == 1
    assert findings.skipped_rows == 1
    cut_in_the_middle = ONE[: ONE.index("</nvidia_smi_log>")]
    rows, findings = read_text(tmp_path, cut_in_the_middle + second)
    assert [row.device.pci_bus_id for row in rows] == ["00000000:01:00.0", "00000000:02:00.0"]
    assert list(findings.skipped) == ["an XML document that is cut short"]


def test_a_broken_document_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    rows, findings = read_text(tmp_path, ONE.replace("</utilization>", "</wrong>") + ONE)
    assert len(rows) == 1
    assert findings.skipped_rows == 1


def test_an_entity_bomb_is_refused_unread(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0"?>\n<!DOCTYPE nvidia_smi_log [\n<!ENTITY a "lol">\n' + "".join(
        f'<!ENTITY b{n} "{("&" + (f"b{n - 1}" if n else "a") + ";") * 10}">\n' for n in range(9)
    )
    with pytest.raises(LogUnreadable, match="entity"):
        read_text(tmp_path, bomb + "]>\n<nvidia_smi_log><timestamp>&b8;</timestamp></nvidia_smi_log>\n")


def test_an_outside_document_type_is_not_fetched(tmp_path: Path) -> None:
    outside = tmp_path / "outside.dtd"
    outside.write_text('<!ENTITY time "Fri May  1 10:00:00 2026">')
    text = ONE.replace("nvsmi_device_v12.dtd", outside.as_uri()).replace("Fri May  1 10:00:00 2026", "&time;")
    with pytest.raises(LogUnreadable):
        # Had the file been read, the entity would be known and the time with it.
        list(read_text(tmp_path, text + text)[0])


def test_other_xml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable, match="<plist>"):
        read_text(tmp_path, '<?xml version="1.0"?>\n<plist></plist>\n')


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Two thousand documents, of which the reader holds one at a time."""
    path = tmp_path / "long.xml"
    with path.open("w") as file:
        for n in range(2000):
            file.write(ONE.replace("10:00:00", f"{n // 60 % 24:02}:{n % 60:02}:00"))
    findings = Findings()
    with RecordedLog(path, ReadOptions(timezone=UTC)) as log:
        rows = log.rows(findings)
        reader_rows = sum(1 for _ in rows)
    assert reader_rows == 2000

"""What Linux says about NVIDIA's devices on the PCI bus; and what a refused driver is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_monitor.core.errors import NotSupported, SourceUnavailable
from gpu_monitor.sources.gpu.nvml.pci import bound_addresses, canonical, gpus
from gpu_monitor.sources.gpu.nvml.refusals import no_gpu, refusal


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("00000000:0A:00.0", "0000:0a:00.0"),  # NVML
        ("0000:0A:00.0", "0000:0a:00.0"),  # NVML's older form
        ("0000:0a:00.0", "0000:0a:00.0"),  # sysfs
        ("00010000:E1:00.0", "10000:e1:00.0"),  # a domain beyond 16 bits, as on some clouds' virtual buses
        ("0009:01:00.0", "0009:01:00.0"),
        ("not an address", "not an address"),
    ],
)
def test_one_spelling_for_all(given: str, address: str) -> None:
    assert canonical(given) == address


def device(root: Path, address: str, vendor: str, kind: str, **power: str) -> None:
    folder = root / "bus/pci/devices" / address
    (folder / "power").mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "class").write_text(kind + "\n")
    for name, text in power.items():
        (folder / "power" / name).write_text(text + "\n")


def test_gpus_of_nvidia_and_nothing_else(tmp_path: Path) -> None:
    device(tmp_path, "0000:01:00.0", "0x10de", "0x030000", control="auto", runtime_status="suspended")
    device(tmp_path, "0000:01:00.1", "0x10de", "0x040300", control="auto", runtime_status="active")
    device(tmp_path, "0000:00:02.0", "0x8086", "0x030000", control="auto", runtime_status="suspended")
    device(tmp_path, "0000:41:00.0", "0x10de", "0x030200", control="on", runtime_status="active")
    device(tmp_path, "0000:42:00.0", "0x10de", "0x068000", control="on", runtime_status="active")  # NVSwitch
    device(tmp_path, "0000:43:00.0", "0x10de", "0x030200")
    found = gpus(tmp_path)
    assert [(gpu.address, gpu.may_suspend(), gpu.is_suspended()) for gpu in found] == [
        ("0000:01:00.0", True, True),
        ("0000:41:00.0", False, False),
        ("0000:43:00.0", False, False),
    ]
    assert gpus(tmp_path / "nothing") == ()


def test_addresses_that_the_driver_holds(tmp_path: Path) -> None:
    sys_root, proc_root = tmp_path / "sys", tmp_path / "proc"
    assert bound_addresses(sys_root, proc_root) == ()
    driver = sys_root / "bus/pci/drivers/nvidia"
    driver.mkdir(parents=True)
    (driver / "new_id").touch()
    assert bound_addresses(sys_root, proc_root) == ()
    (driver / "0000:81:00.0").mkdir()
    (driver / "0000:01:00.0").mkdir()
    assert bound_addresses(sys_root, proc_root) == ("0000:01:00.0", "0000:81:00.0")
    (proc_root / "driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert bound_addresses(sys_root, proc_root) == ("0000:01:00.0",), "a container sees its own there"


@pytest.mark.parametrize(
    ("code", "cause", "kind"),
    [
        (12, "no driver", NotSupported),
        (9, "no driver", NotSupported),
        (18, "driver/library version mismatch", SourceUnavailable),
        (4, "no permission to talk to the driver", SourceUnavailable),
        (999, "driver error: unknown driver error", SourceUnavailable),
        (12345, "driver error: driver error 12345", SourceUnavailable),
    ],
)
def test_refusals(tmp_path: Path, code: int, cause: str, kind: type[SourceUnavailable]) -> None:
    found = refusal(code, tmp_path)
    assert found.cause == cause
    assert type(found.error()) is kind
    assert found.hint


def test_the_hint_fits_the_place(tmp_path: Path) -> None:
    assert "--simulate" in refusal(12, tmp_path).hint
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    assert "WSL" in refusal(12, tmp_path).hint
    (tmp_path / ".dockerenv").touch()
    assert "--gpus all" in refusal(12, tmp_path).hint
    assert "lspci" in no_gpu(tmp_path).hint

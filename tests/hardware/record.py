"""Writes what this machine's cards really answer into a JSON fixture, without serials and UUIDs.

    python -m tests.hardware.record card.json

Two parts: the rounds of the source as it makes them, and raw answers of the driver (types of field values,
spacing of samples, error codes), against which the stand-in can be checked.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.core.model import Round, Span
from gpu_monitor.sources.gpu.nvml import NvmlSettings, NvmlSource
from gpu_monitor.sources.gpu.nvml_child.codes import CALLS

FIELDS = {
    **dict.fromkeys((5, 6, 29, 30, 74, 75, 82, 83, 91, 142, 143, 185, 186, 191), 0),
    **dict.fromkeys((197, 198, 202, 204, 230, 251, 252, 253, 269, 270, 271), 0),
    **dict.fromkeys((138, 139, 140, 141), 2**32 - 1),
}
SAMPLING_TYPES = range(9)
_NAMES_A_CARD = re.compile(r"\b(GPU|MIG)-[0-9a-fA-F-]{8,}")


def anonymous(value: Any, names: dict[str, str]) -> Any:
    """`value` with every UUID as a number of its own and serials left out."""
    if isinstance(value, Mapping):
        return {
            anonymous(key, names): None if key == "serial" else anonymous(item, names)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [anonymous(item, names) for item in value]
    if isinstance(value, str):
        return _NAMES_A_CARD.sub(lambda found: names.setdefault(found[0], f"{found[1]}-{len(names)}"), value)
    return value


def plain(found: Round) -> dict[str, Any]:
    """A round as JSON can carry it; processes only by what they hold."""
    devices = []
    for device in found.devices:
        processes = None if device.processes is None else [{"memory": p.memory} for p in device.processes]
        shown = asdict(replace(device, processes=None, status=device.status))
        devices.append({**shown, "status": device.status.value, "processes": processes})
    return {"paused": found.paused, "devices": devices, "events": [asdict(event) for event in found.events]}


def rounds(source: NvmlSource, seconds: float) -> dict[str, Any]:
    """A first look, and one of each span after `seconds`."""
    found = {"first": plain(source.read(time.time(), Span.WIDE))}
    for span in Span:
        time.sleep(seconds)
        began = time.monotonic()
        found[span.name.lower()] = plain(source.read(time.time(), span))
        found[span.name.lower()]["wait_ms"] = round((time.monotonic() - began) * 1e3, 3)
    return found


def raw_answers() -> list[dict[str, Any]]:
    """Field values, sample buffers and missing functions of every GPU, straight from the driver."""
    import pynvml  # this process is not the agent

    pynvml.nvmlInit()
    answers = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        answers.append(
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "fields": _fields(pynvml, handle),
                "samples": [_samples(pynvml, handle, kind) for kind in SAMPLING_TYPES],
                "missing": [name for name in CALLS[1:] if not _has(pynvml, name)],
            }
        )
    pynvml.nvmlShutdown()
    return answers


def _has(pynvml: Any, name: str) -> bool:
    try:
        pynvml._nvmlGetFunctionPointer(name)
    except pynvml.NVMLError:
        return False
    return True


def _fields(pynvml: Any, handle: Any) -> dict[str, dict[str, int]]:
    asked = pynvml.nvmlDeviceGetFieldValues(handle, list(FIELDS.items()))
    return {
        f"{value.fieldId}/{value.scopeId}": {
            "code": value.nvmlReturn,
            "type": value.valueType,
            "value": value.value.ullVal,
        }
        for value in asked
    }


def _samples(pynvml: Any, handle: Any, kind: int) -> dict[str, Any]:
    try:
        value_type, samples = pynvml.nvmlDeviceGetSamples(handle, kind, 0)
    except pynvml.NVMLError as error:
        return {"kind": kind, "code": error.value}
    stamps = [sample.timeStamp for sample in samples]
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    return {
        "kind": kind,
        "code": 0,
        "type": value_type.value if isinstance(value_type, ctypes._SimpleCData) else value_type,
        "count": len(samples),
        "is_ordered": stamps == sorted(stamps),
        "median_step_us": steps[len(steps) // 2] if steps else None,
        "newest_age_us": round(time.time() * 1e6) - max(stamps) if stamps else None,
        "values": [sample.sampleValue.ullVal for sample in samples[-5:]],
    }


def main() -> None:
    """Record this machine's cards into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="between rounds")
    arguments = parser.parse_args()
    source = NvmlSource(NvmlSettings(idle_release_seconds=0))
    try:
        source.probe()
        found = {"rounds": rounds(source, arguments.seconds)}
    except SourceUnavailable as reason:
        raise SystemExit(str(reason)) from None
    finally:
        source.close()
    found["raw"] = raw_answers()  # type: ignore[assignment]
    arguments.file.write_text(json.dumps(anonymous(found, {}), indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.file}: {len(found['rounds']['full']['devices'])} devices recorded")


if __name__ == "__main__":
    main()

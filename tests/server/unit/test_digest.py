"""The digest of a receipt's rows says the same of equal rows, whatever holds them, and another of others."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from gpu_monitor.server.store import digest
from gpu_monitor.server.store.digest import GpuPart, row_digest

NODE = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
VALUES = tuple(range(len(digest.AGGREGATE_COLUMNS)))
GPU = GpuPart("GPU-1", "nvml", b"i" * 16, b"s" * 16, None, VALUES)
OTHER = GpuPart("GPU-2", "nvml", b"i" * 16, b"s" * 16, '{"new":1}', VALUES)
HOST = tuple(range(len(digest.HOST_COLUMNS)))
GAP = (None, 1_700_000_000.0, 1_700_000_060.5, "agent_down", None)
EVENT = (1_700_000_000.25, "GPU-1", "xid", "error", "Xid 79", '{"code":79}')
PROCESS = (
    "GPU-1",
    7,
    "compute",
    1.0,
    2.0,
    True,
    5,
    "boot",
    None,
    "ann",
    "python",
    None,
    None,
    None,
    1 << 40,
    2,
)


@pytest.mark.parametrize(
    ("columns", "order"),
    [
        (digest.AGGREGATE_COLUMNS, digest.AGGREGATE_ORDER),
        (digest.HOST_COLUMNS, digest.HOST_ORDER),
        (digest.GAP_COLUMNS, digest.GAP_ORDER),
        (digest.EVENT_COLUMNS, digest.EVENT_ORDER),
        (digest.PROCESS_COLUMNS, digest.PROCESS_ORDER),
    ],
)
def test_every_column_counts(columns: tuple[str, ...], order: tuple[str, ...]) -> None:
    assert sorted(order) == sorted(columns), "a new column's name goes to the end of the order"


def test_it_is_the_documented_hash() -> None:
    """Written out by hand: what is stored today must be understood by every later version."""
    gpu = ["GPU-1", "nvml", b"i" * 16, b"s" * 16, None, list(VALUES)]
    parts = [
        NODE,
        472_222,
        [msgspec.msgpack.encode(gpu)],
        None,
        [msgspec.msgpack.encode([None, 1_700_000_000.0, 1_700_000_060.5, "agent_down"])],
        [msgspec.msgpack.encode(list(EVENT))],
        [msgspec.msgpack.encode(list(PROCESS))],
    ]
    expected = hashlib.sha256(msgspec.msgpack.encode(parts)).digest()
    assert row_digest(NODE, 472_222, [GPU], None, [GAP], [EVENT], [PROCESS]) == expected


def test_the_order_of_rows_and_the_types_of_a_driver_do_not_matter() -> None:
    whole = row_digest(NODE, 1, [GPU, OTHER], HOST, [GAP, (*GAP[:3], "asleep", None)], [EVENT], [PROCESS])
    gap = (None, 1_700_000_000, 1_700_000_060.5, "agent_down", None)
    process = (*PROCESS[:5], 1, *PROCESS[6:])
    as_read = [OTHER._replace(identity=memoryview(OTHER.identity)), GPU]  # type: ignore[arg-type]
    assert row_digest(NODE, 1, as_read, HOST, [(*gap[:3], "asleep", None), gap], [EVENT], [process]) == whole


def test_a_column_that_did_not_exist_leaves_old_digests_alone() -> None:
    unknown_last = (*VALUES[:-2], None, None)
    assert digest._bare(unknown_last) == VALUES[:-2]
    assert digest._bare((1, None, 0)) == (1, None, 0)


def test_whatever_differs_is_seen() -> None:
    changed = [
        row_digest(NODE, 1, [GPU], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE[:-1] + "2", 1, [GPU], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 2, [GPU], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU, GPU], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU._replace(uid="GPU-9")], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU._replace(source="simulated")], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU._replace(identity=b"j" * 16)], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU._replace(states=b"j" * 16)], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU._replace(extra="{}")], HOST, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU], None, [GAP], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU], HOST, [], [EVENT], [PROCESS]),
        row_digest(NODE, 1, [GPU], HOST, [GAP], [], [PROCESS]),
        row_digest(NODE, 1, [GPU], HOST, [GAP], [EVENT], []),
    ]
    for at in range(len(VALUES)):
        values = (*VALUES[:at], None, *VALUES[at + 1 :])
        changed.append(row_digest(NODE, 1, [GPU._replace(values=values)], HOST, [GAP], [EVENT], [PROCESS]))
        values = (*VALUES[:at], VALUES[at] + 1, *VALUES[at + 1 :])
        changed.append(row_digest(NODE, 1, [GPU._replace(values=values)], HOST, [GAP], [EVENT], [PROCESS]))
    assert len(set(changed)) == len(changed)

"""What clients of the live socket may send, and the cursors they hold."""

from __future__ import annotations

import json

import pytest

from gpu_monitor.server.live.messages import (
    AskError,
    Cursor,
    Parts,
    Wanted,
    compose,
    read_ask,
    read_cursor,
    subscription,
    write_cursor,
)
from gpu_monitor.server.live.watch import WATCHED_NODES, WatchList


def test_an_ask_names_what_is_wanted() -> None:
    ask = read_ask(
        '{"subscribe": {"fleet": true, "nodes": "all", "gpus": ["GPU-1"], "new": 1}, "cursor": "abc"}'
    )
    assert ask.subscribe == Wanted(fleet=True, nodes="all", gpus=["GPU-1"])
    assert ask.cursor == "abc"


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "null", "{}", '{"subscribe": []}', '{"subscribe": {"nodes": "some"}}',
        '{"subscribe": {"gpus": [1]}}', '{"subscribe": {}, "cursor": 5}', '{"subscribe": {"include": "all"}}',
        "[" * 30_000, '{"subscribe": {"gpus": "\ud800"}}',
    ],
)  # fmt: skip
def test_what_is_no_ask_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(AskError, match="not understood"):
        read_ask(text)


def test_too_many_names_are_refused() -> None:
    names = [f"GPU-{number}" for number in range(200)]
    with pytest.raises(AskError, match="400 names"):
        read_ask(json.dumps({"subscribe": {"nodes": names, "gpus": names}}))


def test_a_cursor_reads_back_exactly() -> None:
    cursor = Cursor(2**40 + 1, 1_710_945_000.1234567, b"12345678")
    assert read_cursor(write_cursor(cursor)) == cursor


@pytest.mark.parametrize("text", ["", "a", "AAAA", "ä", "\ud800", "%" * 32, "A" * 64])
def test_what_is_no_cursor_is_none(text: str) -> None:
    assert read_cursor(text) is None


def test_equal_questions_have_equal_digests_and_others_do_not() -> None:
    one = subscription(Wanted(gpus=["a", "b"]), frozenset((1, 2)))
    assert subscription(Wanted(gpus=["b", "a", "b"]), frozenset((2, 1))).digest == one.digest
    others = [
        subscription(Wanted(gpus=["a"]), frozenset((1, 2))),
        subscription(Wanted(gpus="all"), frozenset((1, 2))),
        subscription(Wanted(gpus=["a", "b"]), None),
        subscription(Wanted(gpus=["a", "b"], fleet=True), frozenset((1, 2))),
        subscription(Wanted(nodes=["a", "b"]), frozenset((1, 2))),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6


def test_a_message_leaves_out_what_did_not_change() -> None:
    assert json.loads(compose(Parts("c", "t", False, None, [], [b'{"a":1}', b'{"a":2}']))) == {
        "cursor": "c", "time": "t", "reset": False, "gpus": [{"a": 1}, {"a": 2}],
    }  # fmt: skip
    assert json.loads(compose(Parts("c", "t", True, b"{}", [], []))) == {
        "cursor": "c", "time": "t", "reset": True, "fleet": {}, "nodes": [], "gpus": [],
    }  # fmt: skip


def test_of_too_many_watched_nodes_the_first_stay() -> None:
    watch = WatchList()
    watch.look(["zz"])
    watch.look(["zz", *(f"node-{number:03}" for number in range(200))])
    assert len(watch.here) == WATCHED_NODES == 64
    assert watch.seconds("zz") == 2
    watch.hear(["elsewhere"])
    assert (watch.seconds("elsewhere"), watch.seconds("node-199")) == (2, None)

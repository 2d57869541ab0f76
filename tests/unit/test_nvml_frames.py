"""Frames over a pipe: whatever pieces they come in, and what is no frame at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.sources.frames import LARGEST, BrokenFrame, Inbox, pack

MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def take_all(inbox: Inbox) -> list[object]:
    found = []
    while (message := inbox.take()) is not None:
        found.append(message[0])
    return found


@given(st.lists(MESSAGES, max_size=4), st.integers(1, 7))
def test_messages_arrive_whole_and_in_order_in_pieces_of_any_size(messages: list[object], size: int) -> None:
    stream = b"".join(pack(message) for message in messages)
    inbox, found = Inbox(), []
    for start in range(0, len(stream), size):
        inbox.add(stream[start : start + size])
        found += take_all(inbox)
    assert found == messages


def test_none_is_a_message_and_not_the_lack_of_one() -> None:
    inbox = Inbox()
    assert inbox.take() is None
    inbox.add(pack(None))
    assert inbox.take() == (None,)


@pytest.mark.parametrize("garbage", [b"NVRM: Xid (PCI:0000", b"\x02\x00\x00\x00zz", b"\x01\x00\x00\x00("])
def test_garbage_is_told_from_a_frame(garbage: bytes) -> None:
    inbox = Inbox()
    inbox.add(garbage)
    with pytest.raises(BrokenFrame):
        inbox.take()


def test_a_length_that_no_round_has_is_refused_before_it_is_waited_for() -> None:
    inbox = Inbox()
    inbox.add((LARGEST + 1).to_bytes(4, "little"))
    with pytest.raises(BrokenFrame):
        inbox.take()

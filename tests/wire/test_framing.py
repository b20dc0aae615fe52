"""Frames: whatever the pieces in which they arrive, and whatever arrives instead."""

from __future__ import annotations

import contextlib
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mppool.core.events import Abandoned, Attach, Checkout, Declaration, Held
from mppool.errors import ProtocolError
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions
from mppool.wire import framing
from mppool.wire.framing import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    encode,
    process_side_reader,
    server_side_reader,
)
from mppool.wire.messages import (
    PROTOCOL,
    Done,
    Hello,
    Leave,
    Rejected,
    Stats,
    ToProcess,
    ToServer,
    WantStats,
)

MESSAGES = [
    Hello(PROTOCOL, "shop", ProcessId(1, 2**40), "errand", Session(2**62), 30.0),
    Attach(
        "ü",
        [Declaration("pool", PoolOptions(max_size=None), 1.5, "key\0identity")],
        [Held("pool", "key", GrantNumber(2**62), "open", 3, 4)],
    ),
    Checkout("pool", "key\0identity", Ticket(2**60), None),
    Abandoned(Ticket(1)),
    Leave(),
    WantStats(),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(MESSAGES)), st.data())
def test_pieces_do_not_matter(messages: list[msgspec.Struct], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in messages)
    reader = server_side_reader()
    heard: list[object] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        heard += reader.feed(stream[:size])
        stream = stream[size:]
    assert heard == messages
    assert reader.pending == 0


@pytest.mark.parametrize("length", [*range(500, 520), 65535, 65536])
def test_the_length_of_a_message_does_not_matter(length: int) -> None:
    """Headers of short ones are looked up, those of others are made."""
    message = Rejected("leaving", "x" * length)
    frame = encode(message)
    assert frame[:HEADER_BYTES] == (len(frame) - HEADER_BYTES).to_bytes(HEADER_BYTES, "big")
    reader = process_side_reader()
    assert reader.feed(frame) == [message]
    assert reader.feed(frame[:3]) == []
    assert reader.feed(frame[3:]) == [message]
    assert reader.feed(frame + frame) == [message, message]
    assert reader.pending == 0


def test_a_frame_within_a_message_is_no_frame() -> None:
    """A piece of a message may look like one."""
    inner = encode(Done())
    message = Stats({}, b"before " + inner + b" after")
    frame = encode(message)
    at = frame.index(inner)
    reader = process_side_reader()
    assert reader.feed(frame[:at]) == []
    assert reader.feed(frame[at : at + len(inner)]) == []
    assert reader.feed(frame[at + len(inner) :]) == [message]


def test_every_message_of_both_directions_has_a_tag_of_its_own() -> None:
    for union in (ToServer, ToProcess):
        tags = [kind.__struct_config__.tag for kind in typing.get_args(union)]
        assert len(tags) == len(set(tags))


@pytest.mark.parametrize("length", [MAX_HELLO_BYTES + 1, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_before_anything_is_buffered(length: int) -> None:
    with pytest.raises(ProtocolError, match="announces"):
        server_side_reader().feed(length.to_bytes(HEADER_BYTES, "big"))


def test_a_message_larger_than_a_frame_is_refused_where_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(ProtocolError, match="larger than a frame"):
        encode(Stats({"x": "y" * 1000}))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for_and_nothing_else(garbage: bytes) -> None:
    for reader in (server_side_reader(), process_side_reader()):
        with contextlib.suppress(ProtocolError):
            assert reader.feed(garbage) == [] or len(garbage) > HEADER_BYTES


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([*MESSAGES, Done()]), st.data())
def test_a_mutated_frame_is_a_message_or_refused(
    message: msgspec.Struct, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(HEADER_BYTES, len(frame) - 1))] = data.draw(st.integers(0, 255))
    for reader in (server_side_reader(), process_side_reader()):
        try:
            heard = reader.feed(bytes(frame))
        except ProtocolError:
            continue
        assert len(heard) == 1


def test_the_text_of_a_refusal_holds_nothing_of_the_message() -> None:
    body = msgspec.msgpack.encode(["Checkout", "PWD=hunter2", {"PWD": "hunter2"}, 1, None])
    with pytest.raises(ProtocolError) as caught:
        server_side_reader().feed(len(body).to_bytes(HEADER_BYTES, "big") + body)
    assert "hunter2" not in str(caught.value)

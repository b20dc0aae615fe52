"""Frames: 4 bytes length, big-endian, then one message. No I/O here."""

from __future__ import annotations

import functools
from typing import Generic, TypeVar

import msgspec

from mppool.errors import ProtocolError
from mppool.wire.messages import ToProcess, ToServer

M = TypeVar("M")

HEADER_BYTES = 4
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Larger than any inventory of 100,000 slots; a length beyond it is garbage."""
MAX_HELLO_BYTES = 64 * 1024
"""A peer that has not introduced itself may not make the server buffer more than this."""

_encode = msgspec.msgpack.Encoder().encode
_SHORT_BYTES = 512
_HEADERS = [length.to_bytes(HEADER_BYTES, "big") for length in range(_SHORT_BYTES)]
"""Of short messages, as nearly all are: to look a header up takes half as long as to make it, or to read it."""


def encode(message: msgspec.Struct) -> bytes:
    """The frame of one message."""
    body = _encode(message)
    length = len(body)
    if length < _SHORT_BYTES:
        return _HEADERS[length] + body
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"a {type(message).__name__} of {length} bytes is larger than a frame may be "
            f"({MAX_FRAME_BYTES} bytes); a stats hook that returns much data is the usual reason"
        )
    return length.to_bytes(HEADER_BYTES, "big") + body


class FrameReader(Generic[M]):
    """Cuts a stream of bytes into messages of one direction.

    Not thread-safe: it belongs to the owner of the connection.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M], limit: int = MAX_FRAME_BYTES) -> None:
        assert limit >= _SHORT_BYTES  # so shorter frames need not be compared with it
        self._decode = decoder.decode
        self._buffer = bytearray()
        self.limit = limit

    def feed(self, data: bytes) -> list[M]:
        """The messages that `data` completes. ProtocolError for bytes that are not a message; feed no more then."""
        length = len(data) - HEADER_BYTES
        if (
            0 <= length < _SHORT_BYTES
            and data[:HEADER_BYTES] == _HEADERS[length]
            and not self._buffer
        ):
            # Nearly always it is just one frame.
            try:
                return [self._decode(data[HEADER_BYTES:])]
            except _UNDECODABLE as error:
                raise _unknown(length, error) from None
        buffer = self._buffer
        buffer += data
        messages: list[M] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            length = int.from_bytes(buffer[start:body], "big")
            if length > self.limit:
                raise ProtocolError(
                    f"a frame announces {length} bytes; at most {self.limit} are allowed here, so the peer "
                    "does not speak mppool's protocol"
                )
            if len(buffer) - body < length:
                break
            try:
                messages.append(self._decode(memoryview(buffer)[body : body + length]))
            except _UNDECODABLE as error:
                raise _unknown(length, error) from None
            start = body + length
        if start:
            del buffer[:start]
        return messages

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)


_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)


def _unknown(length: int, error: Exception) -> ProtocolError:
    return ProtocolError(f"a frame of {length} bytes holds no known message: {error}")


def server_side_reader() -> FrameReader[ToServer]:
    """A reader for what processes send, strict until the peer has introduced itself."""
    return FrameReader(_to_server(), MAX_HELLO_BYTES)


def process_side_reader() -> FrameReader[ToProcess]:
    """A reader for what the server sends."""
    return FrameReader(_to_process())


# Made once, when first needed: a decoder holds nothing of what it decodes, so all connections share it.
@functools.cache
def _to_server() -> msgspec.msgpack.Decoder[ToServer]:
    return msgspec.msgpack.Decoder(ToServer)


@functools.cache
def _to_process() -> msgspec.msgpack.Decoder[ToProcess]:
    return msgspec.msgpack.Decoder(ToProcess)

"""TDS on the wire: packets, the two ways to TLS, LOGIN7, and the tokens that answers are made of."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass

SQL_BATCH, ATTENTION, TRANSACTION_MANAGER = 0x01, 0x06, 0x0E
RESULT, LOGIN7, PRELOGIN = 0x04, 0x10, 0x12

END_OF_MESSAGE, RESET_CONNECTION, RESET_KEEPING_TRANSACTION = 0x01, 0x08, 0x10

_PACKET_BYTES = 4096
_TLS_HANDSHAKE = 0x16
_COLLATION = bytes.fromhex("0904d00034")


class Gone(Exception):
    """The other side closed the connection."""


@dataclass
class Message:
    kind: int
    status: int
    data: bytes


class Wire:
    """Messages over a socket, in the clear, over TLS, or with TLS yet to come (`secure`).

    `Encrypt=strict` begins with TLS (TDS 8.0); otherwise PRELOGIN is in the clear, and the handshake
    travels inside PRELOGIN packets.
    """

    def __init__(self, sock: socket.socket, certificate: str, key: str) -> None:
        self._socket: socket.socket | ssl.SSLSocket = sock
        self._certificate = (certificate, key)
        self._tls: ssl.SSLObject | None = None
        self._to_tls, self._from_tls = ssl.MemoryBIO(), ssl.MemoryBIO()
        first = sock.recv(1, socket.MSG_PEEK)
        if not first:
            raise Gone
        self.strict = first[0] == _TLS_HANDSHAKE
        if self.strict:
            context = self._context()
            context.set_alpn_protocols(["tds/8.0"])
            self._socket = context.wrap_socket(sock, server_side=True)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._certificate)
        return context

    def secure(self) -> None:
        """The handshake inside PRELOGIN packets; everything after it is plain TLS records."""
        context = self._context()
        # TLS 1.3 sends tickets after the handshake, when nothing is framed any more.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        tls = context.wrap_bio(self._to_tls, self._from_tls, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_handshake()
                self._to_tls.write(self.receive().data)
            else:
                break
        self._flush_handshake()
        self._tls = tls

    def _flush_handshake(self) -> None:
        if self._from_tls.pending:
            self.send(PRELOGIN, self._from_tls.read())

    def receive(self) -> Message:
        """One whole message. Raises Gone."""
        data, status = b"", 0
        while True:
            kind, flags, length = struct.unpack(">BBH4x", self._read(8))
            data += self._read(length - 8)
            status |= flags
            if flags & END_OF_MESSAGE:
                return Message(kind, status, data)

    def send(self, kind: int, data: bytes) -> None:
        step, out = _PACKET_BYTES - 8, b""
        for number, start in enumerate(range(0, len(data), step), 1):
            piece = data[start : start + step]
            last = END_OF_MESSAGE if start + step >= len(data) else 0
            out += struct.pack(">BBHHBB", kind, last, len(piece) + 8, 0, number % 256, 0) + piece
        if self._tls is not None:
            self._tls.write(out)
            out = self._from_tls.read()
        self._socket.sendall(out)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._read_some(count - len(data))
            if not piece:
                raise Gone
            data += piece
        return data

    def _read_some(self, most: int) -> bytes:
        if self._tls is None:
            return self._socket.recv(most)
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                arrived = self._socket.recv(65536)
                if not arrived:
                    return b""
                self._to_tls.write(arrived)
            except ssl.SSLZeroReturnError:
                return b""


# --- what the client says ---------------------------------------------------------------------------


def prelogin_answer(asked: bytes) -> bytes:
    """Version, encryption on for everything, and that federated authentication is understood."""
    options = {0: bytes([16, 0, 0, 0, 0, 0]), 1: b"\x01", 2: b"\0", 4: b"\0"}
    position = 0
    while asked[position] != 0xFF:
        if asked[position] == 6:
            options[6] = b"\x01"
        position += 5
    offset, head, body = 5 * len(options) + 1, b"", b""
    for option, value in options.items():
        head += struct.pack(">BHH", option, offset + len(body), len(value))
        body += value
    return head + b"\xff" + body


@dataclass
class Login:
    user: str
    password: str
    application: str
    database: str
    token: str | None
    """The access token as it arrived, verbatim; None for a login with user and password."""


def parse_login(data: bytes) -> Login:
    def text(index: int) -> bytes:
        offset, characters = struct.unpack_from("<HH", data, 36 + 4 * index)
        return data[offset : offset + 2 * characters]

    password = bytes(((byte ^ 0xA5) << 4 | (byte ^ 0xA5) >> 4) & 0xFF for byte in text(2))
    user, application, database = (text(index).decode("utf-16-le") for index in (1, 3, 8))
    return Login(user, password.decode("utf-16-le"), application, database, _token_in(data))


def _token_in(data: bytes) -> str | None:
    if not data[27] & 0x10:
        return None  # no extension of features
    (pointer,) = struct.unpack_from("<H", data, 36 + 4 * 5)
    (position,) = struct.unpack_from("<I", data, pointer)
    while data[position] != 0xFF:
        feature, length = struct.unpack_from("<BI", data, position)
        value = data[position + 5 : position + 5 + length]
        # FEDAUTH, library 1: a security token. A malformed one arrives as what the driver read beyond it.
        if feature == 2 and value[0] >> 1 == 1:
            (size,) = struct.unpack_from("<I", value, 1)
            return value[5 : 5 + size].decode("utf-16-le", "backslashreplace")
        position += 5 + length
    return None


def after_headers(data: bytes) -> bytes:
    """What follows ALL_HEADERS in a request."""
    return data[struct.unpack_from("<I", data)[0] :]


# --- what the server says ---------------------------------------------------------------------------


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("utf-16-le")


def _token(kind: int, body: bytes) -> bytes:
    return struct.pack("<BH", kind, len(body)) + body


def changed(kind: int, new: bytes, old: bytes) -> bytes:
    """ENVCHANGE: of the transaction (8, 9, 10), the packet size (4), or that the session was reset (18)."""
    return _token(0xE3, bytes([kind]) + new + old)


RESET_DONE = changed(18, b"\0", b"\0")


def logged_in(database: str, *, strict: bool, with_token: bool) -> bytes:
    version = bytes.fromhex("08000000" if strict else "74000004")
    answer = changed(1, _short(database or "master"), _short("master"))
    answer += changed(7, b"\x05" + _COLLATION, b"\0")
    answer += _token(0xAD, b"\x01" + version + _short("TDS double") + bytes([16, 0, 0, 0]))
    answer += changed(4, _short(str(_PACKET_BYTES)), _short(str(_PACKET_BYTES)))
    if with_token:
        answer += b"\xae" + struct.pack("<BI", 2, 0) + b"\xff"
    return answer + done()


def done(rows: int | None = None, *, status: int = 0) -> bytes:
    count = 0 if rows is None else 0x10
    return b"\xfd" + struct.pack("<HHQ", status | count, 0xC1, rows or 0)


def error(number: int, text: str, severity: int = 14) -> bytes:
    body = struct.pack("<IBBH", number, 1, severity, len(text)) + text.encode("utf-16-le")
    return _token(0xAA, body + _short("double") + _short("") + struct.pack("<I", 1)) + done(
        status=0x02
    )


def one_value(value: int | str) -> bytes:
    """A result of one row and one column."""
    return one_row([value])


def one_row(values: Sequence[int | str]) -> bytes:
    """A result of one row: each column is INT or NVARCHAR."""
    metadata = b"\x81" + struct.pack("<H", len(values))
    row = b"\xd1"
    for value in values:
        if isinstance(value, int):
            kind, cell = b"\x26\x04", b"\x04" + struct.pack("<i", value)
        else:
            kind = b"\xe7" + struct.pack("<H", 8000) + _COLLATION
            encoded = value.encode("utf-16-le")
            cell = struct.pack("<H", len(encoded)) + encoded
        metadata += struct.pack("<IH", 0, 1) + kind + _short("value")
        row += cell
    return metadata + row + done(1)

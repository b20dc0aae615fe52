"""A database stand-in that counts, independently of mppool, how many sessions living processes have open.

Opening a session is answered only after it was counted, so two sessions that overlap are always seen to.
A session is counted while its client end is held by the living process that opened it (rule 9): a forked
child that still has a copy of the descriptor does not keep the session of a dead parent in the count.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import final

from mppool import Recipe
from mppool.recipe import Opening
from tests.helpers import is_alive

_TOKEN_BYTES = 8
_FAREWELL = b"."


@dataclass
class Seen:
    """One session, as the witness knows it."""

    pid: int
    database: str


@final
class Witness:
    """Counts in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.peak = 0
        self.opened = 0
        self.farewells = 0  # of sessions that were closed in order, not merely cut off
        self.databases: set[str] = set()
        self._lock = threading.Lock()
        self._sessions: dict[socket.socket, Seen] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(128)
        self._wake_reading, self._wake_writing = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reading, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="witness")

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake_writing.send(b"!")
        self._thread.join()
        for end in (*self._sessions, self._listener, self._wake_reading, self._wake_writing):
            end.close()
        self._selector.close()
        self.path.unlink()

    def sessions(self) -> list[Seen]:
        """Those open now, of processes that live."""
        with self._lock:
            return [seen for seen in self._sessions.values() if is_alive(seen.pid)]

    def pids(self) -> set[int]:
        """The processes that have sessions open now."""
        return {seen.pid for seen in self.sessions()}

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._wake_reading:
                    return
                if end is self._listener:
                    self._begin()
                else:
                    self._answer(end)

    def _begin(self) -> None:
        end, _ = self._listener.accept()
        end.settimeout(5.0)
        pid, _, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            database = end.recv(200).decode()
        except OSError:
            database = ""
        if not database:  # killed while opening
            end.close()
            return
        end.setblocking(False)
        # What was closed before this one was opened is no longer counted: its end is seen now.
        for other in list(self._sessions):
            self._look_for_end(other)
        with self._lock:
            self._sessions[end] = Seen(pid, database)
        self.opened += 1
        self.databases.add(database)
        self.peak = max(self.peak, len(self.sessions()))
        self._selector.register(end, selectors.EVENT_READ)
        self._send(end, b"!" * _TOKEN_BYTES)

    def _look_for_end(self, end: socket.socket) -> None:
        try:
            waiting = end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            waiting = b""
        if waiting in (b"", _FAREWELL):
            self._answer(end)

    def _answer(self, end: socket.socket) -> None:
        if end not in self._sessions:
            return  # it ended while this batch was served
        try:
            token = end.recv(_TOKEN_BYTES)
        except BlockingIOError:
            return
        except OSError:
            token = b""
        if token == _FAREWELL:
            self.farewells += 1
            self._end(end)
        elif token:
            self._send(end, token)
        else:
            self._end(end)

    def _send(self, end: socket.socket, data: bytes) -> None:
        try:
            end.sendall(data)
        except OSError:
            return  # it was killed; the next look finds its end

    def _end(self, end: socket.socket) -> None:
        self._selector.unregister(end)
        with self._lock:
            del self._sessions[end]
        end.close()


class Session:
    """A client's end of a session with the witness."""

    def __init__(self, path: str, database: str) -> None:
        self.database = database
        self.pid = os.getpid()
        self.in_doubt = False  # an interrupt between question and answer: the answer may still come
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10.0)
        try:
            self._socket.connect(path)
            self._socket.sendall(database.encode())
            self._read()
        except BaseException:  # interrupted: half a session must not stay open
            self._socket.close()
            raise

    def _read(self) -> bytes:
        answer = b""
        while len(answer) < _TOKEN_BYTES:
            more = self._socket.recv(_TOKEN_BYTES - len(answer))
            if not more:
                raise ConnectionError("the witness has closed this session")
            answer += more
        return answer

    def ask(self) -> None:
        """One round trip. Raises if the answer is not to this question, or this is not our session."""
        if self.pid != os.getpid():
            raise AssertionError(f"process {os.getpid()} was given a session of {self.pid}")
        token = secrets.token_bytes(_TOKEN_BYTES)
        self.in_doubt = True
        self._socket.sendall(token)
        if self._read() != token:
            raise AssertionError("an answer that was meant for somebody else")
        self.in_doubt = False

    def close(self) -> None:
        """Say farewell: also copies in forked children are of no use from here on."""
        self._socket.sendall(_FAREWELL)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class WitnessRecipe(Recipe[Session]):
    """Sessions with the witness at `path`; `database` is what is opened, part of the key."""

    def __init__(self, path: str, database: str = "main") -> None:
        self.path = path
        self.database = database

    def open(self, opening: Opening) -> Session:
        return Session(self.path, self.database)

    def check(self, resource: Session) -> bool:
        return not resource.in_doubt

    def fingerprint(self) -> str:
        return f"witness:{self.database}"

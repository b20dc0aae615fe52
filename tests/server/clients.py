"""Clients that speak the protocol by hand, for tests of the server."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, final

import msgspec
import pytest

from mppool.core.events import Attach, Checkout, Declaration, Held
from mppool.ids import ProcessId, Session, Ticket, own_process
from mppool.options import PoolOptions
from mppool.rendezvous import launch
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.loop import Server
from mppool.wire.framing import encode, process_side_reader
from mppool.wire.messages import PROTOCOL, Attached, Hello, Rejected, Role, ToProcess, Welcome
from tests.helpers import PATIENCE, Fork, wait_until

M = TypeVar("M")
NO_SESSION = Session(0)
_tickets = itertools.count(1)  # never used again within a process, not even after attaching again


_all_clients: list[Client] = []
_all_backgrounds: list[Background] = []


def close_all() -> None:
    """End all connections and servers of this process, whatever failing tests have left."""
    while _all_clients:
        _all_clients.pop().close()
    while _all_backgrounds:
        background = _all_backgrounds.pop()
        background.server.leave()
        background.join()


class Client:
    """One connection to a server, closed at the latest at the end of the test."""

    def __init__(self, paths: ManagerPaths, *, start: bool = False, linger: float = 0.1) -> None:
        deadline = time.monotonic() + PATIENCE
        found = (
            launch.find_or_start(paths, linger=linger, deadline=deadline)
            if start
            else wait_until(lambda: launch.connect(paths, deadline), "a server to connect to")
        )
        assert found is not None
        self.paths = paths
        self.linger = linger
        self.socket: socket.socket = found
        self.socket.settimeout(PATIENCE)
        self.reader = process_side_reader()
        self.heard: list[ToProcess] = []
        _all_clients.append(self)

    def send(self, message: msgspec.Struct) -> None:
        self.socket.sendall(encode(message))

    def hear(self) -> ToProcess:
        """The next message; EOFError at the end."""
        while not self.heard:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self.heard += self.reader.feed(data)
        return self.heard.pop(0)

    def hear_a(self, kind: type[M]) -> M:
        """The next message of this kind; others before it are dropped."""
        while True:
            message = self.hear()
            if isinstance(message, kind):
                return message
            if isinstance(message, Rejected):
                pytest.fail(f"rejected: {message}")

    def call(self, message: msgspec.Struct) -> ToProcess:
        self.send(message)
        return self.hear()

    def is_closed(self) -> bool:
        """Wait for the server to close this connection."""
        try:
            while True:
                self.hear()
        except (EOFError, ConnectionResetError):
            return True

    def hello(
        self,
        role: Role,
        session: Session = NO_SESSION,
        *,
        process: ProcessId | None = None,
        protocol: int = PROTOCOL,
        manager: str | None = None,
    ) -> ToProcess:
        return self.call(
            Hello(
                protocol,
                self.paths.name if manager is None else manager,
                process or own_process(),
                role,
                session,
                self.linger,
            )
        )

    def close(self) -> None:
        self.socket.close()


@final
class Member:
    """The calling process, attached: an errand channel and a call connection."""

    def __init__(
        self,
        paths: ManagerPaths,
        *,
        held: Iterable[Held] = (),
        max_size: int = 2,
        start: bool = True,
        linger: float = 0.1,
        label: str = "test",
    ) -> None:
        self.paths = paths
        self.errand = Client(paths, start=start, linger=linger)
        welcome = self.errand.hello("errand")
        assert isinstance(welcome, Welcome), welcome
        self.welcome = welcome
        declaration = Declaration("pool", PoolOptions(max_size=max_size), 0.0)
        self.errand.send(Attach(label, [declaration], list(held)))
        self.errand.hear_a(Attached)
        self.call = Client(paths, linger=linger)
        assert isinstance(self.call.hello("call", welcome.session), Welcome)
        self.ticket = Ticket(0)

    def checkout(self, timeout: float | None = PATIENCE, key: str = "key") -> ToProcess:
        self.ticket = Ticket(next(_tickets))
        return self.call.call(Checkout("pool", key, self.ticket, timeout))

    def close(self) -> None:
        self.errand.close()
        self.call.close()

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Background:
    """A server in a thread of the calling process."""

    def __init__(self, paths: ManagerPaths, *, linger: float = 60.0) -> None:
        self.server = Server(paths, linger=linger)
        self.server.open()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="server")
        self._thread.start()
        _all_backgrounds.append(self)

    def _serve(self) -> None:
        try:
            self.server.serve_forever()
        except BaseException as error:  # shown to the test
            self._failure = error

    def join(self) -> None:
        """Wait until it has left by itself."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not leave"
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Server:
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.leave()
        self.join()


@final
class Holder:
    """A forked child that holds grants until it is killed or told to end."""

    def __init__(self, paths: ManagerPaths, count: int, *, max_size: int = 2) -> None:
        reading, writing = os.pipe()

        def hold() -> None:
            member = Member(paths, max_size=max_size)
            numbers = [member.checkout().number for _ in range(count)]  # type: ignore[union-attr]
            os.write(writing, repr(numbers).encode())
            os.close(writing)
            signal.pause()

        self.fork = Fork(hold)
        os.close(writing)
        self.pid = self.fork.pid
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
        if not text:
            self.fork.result()  # shows why
        self.numbers: list[int] = [
            int(number) for number in text.strip(b"[]").split(b",") if number
        ]

    def kill(self) -> None:
        self.fork.kill()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.fork.kill()


def kill_server(paths: ManagerPaths) -> int:
    """SIGKILL the server of these paths and wait for its end; its pid."""
    pid = launch.server_pid(paths)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: launch.server_pid(paths) is None, "the end of the server")
    return pid


def in_children(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run the function in so many forked children at once; what they returned."""
    children = [Fork(function, *arguments) for _ in range(count)]
    try:
        return [child.result() for child in children]
    finally:
        for child in children:
            child.kill()

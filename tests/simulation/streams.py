"""What can be polled: sockets, pipes, event counters, pidfds; and `socket`, `select`, as processes see them."""

from __future__ import annotations

import errno
import os as real_os
import select as real_select
import socket as real_socket
import struct
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import current_thread, here, point

if TYPE_CHECKING:
    from tests.simulation.kernel import Kernel
    from tests.simulation.processes import Process

IN, OUT = real_select.POLLIN, real_select.POLLOUT
HUP, ERR = real_select.POLLHUP, real_select.POLLERR
SO_PEERPIDFD = 77


def refused(number: int) -> OSError:
    """The subclass of OSError that Python makes of an errno."""
    return OSError(number, real_os.strerror(number))


class Pollable:
    """Something whose readiness changes. sleepers: threads that wait for that."""

    def __init__(self) -> None:
        self.references = 0
        self.sleepers: list[Any] = []

    def events(self) -> int:
        raise NotImplementedError

    def changed(self) -> None:
        if self.sleepers:
            sleepers, self.sleepers = self.sleepers, []
            for thread in sleepers:
                here.scheduler.wake(thread)

    def close(self, process: Process) -> None:
        self.changed()


def wait_for(things: list[Pollable], until: float | None) -> bool:
    """Sleep until one of them has changed. May return earlier. False: it is too late."""
    thread = current_thread()
    for thing in things:
        thing.sleepers.append(thread)
    woken = here.scheduler.block(until)
    for thing in things:
        if thread in thing.sleepers:
            thing.sleepers.remove(thread)
    return bool(woken)


class Stream(Pollable):
    """One end of a connection. What is sent arrives after a delay, in order.

    room: so much may lie unread. owner: the process that connected, or accepted. breaks: at the next send: "before" it, or
    "after" it.
    """

    def __init__(self, kernel: Kernel, owner: Process) -> None:
        super().__init__()
        self.kernel, self.owner = kernel, owner
        self.peer: Stream | None = None
        self.inbox = bytearray()
        self.under_way = 0
        self.breaks = ""
        self.has_end = self.is_reset = self.is_shut = self.is_closed = False
        self._arrives_at = 0.0
        kernel.streams[self] = None

    def events(self) -> int:
        events = 0
        if self.inbox or self.has_end or self.is_reset:
            events |= IN
        if self.has_end or self.is_reset:
            events |= HUP
        if self.is_reset:
            events |= ERR
        peer = self.peer
        if peer is None or peer.is_closed or len(peer.inbox) + peer.under_way < self.kernel.room:
            events |= OUT
        return events

    def send(self, data: Any) -> int:
        peer = self.peer
        if self.is_reset or self.is_shut or peer is None or peer.is_closed:
            raise refused(errno.EPIPE)
        room = self.kernel.room - len(peer.inbox) - peer.under_way
        if room <= 0:
            raise refused(errno.EAGAIN)
        part = bytes(data[:room])
        if self.breaks == "before":
            self.cut()
            raise refused(errno.EPIPE)
        delay = self.kernel.delay()
        if delay or peer.under_way:
            peer.under_way += len(part)
            peer._later(delay, lambda: peer._arrived(part))
        else:
            peer.inbox += part
            peer.changed()
        if self.breaks:
            self.is_reset, self.is_shut = True, True
            self.inbox.clear()
            peer._later(0.0, peer._ended)
        return len(part)

    def _later(self, delay: float, function: Any) -> None:
        self._arrives_at = max(self._arrives_at, here.scheduler.now + delay)
        self.kernel.scheduler.call_at(self._arrives_at, function)

    def _arrived(self, part: bytes) -> None:
        self.under_way -= len(part)
        if not self.is_reset and not self.is_closed:
            self.inbox += part
            self.changed()

    def receive(self, most: int) -> bytes:
        if self.is_reset:
            self.is_reset, self.has_end = False, True
            raise refused(errno.ECONNRESET)
        if self.inbox:
            part = bytes(self.inbox[:most])
            del self.inbox[:most]
            if self.peer is not None:
                self.peer.changed()
            return part
        if self.has_end or self.is_shut:
            return b""
        raise refused(errno.EAGAIN)

    def shut(self) -> None:
        """Both directions."""
        if self.is_shut:
            return
        self.is_shut = True
        self.changed()
        peer = self.peer
        if peer is not None and not peer.is_closed:
            peer._later(0.0 if not peer.under_way else self.kernel.delay(), peer._ended)

    def _ended(self) -> None:
        self.has_end = True
        self.changed()

    def close(self, process: Process) -> None:
        self.is_closed = True
        self.kernel.streams.pop(self, None)
        if self.inbox and self.peer is not None and not self.peer.is_closed:
            self.peer.is_reset = True  # a Unix socket tells that something was not read
            self.peer.changed()
        self.shut()
        self.changed()

    def cut(self) -> None:
        """The connection breaks: what is under way in either direction is lost."""
        for end in (self, self.peer):
            if end is not None:
                end.inbox.clear()
                end.is_reset = True
                end.changed()


def connected(kernel: Kernel, one: Process, other: Process) -> tuple[Stream, Stream]:
    first, second = Stream(kernel, one), Stream(kernel, other)
    first.peer, second.peer = second, first
    return first, second


class Listener(Pollable):
    """A socket that listens."""

    def __init__(self, owner: Process) -> None:
        super().__init__()
        self.owner = owner
        self.backlog: list[Stream] = []
        self.is_closed = False

    def events(self) -> int:
        return IN if self.backlog else 0

    def close(self, process: Process) -> None:
        self.is_closed = True
        for stream in self.backlog:
            stream.close(process)
        super().close(process)


class Counter(Pollable):
    """An eventfd."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def events(self) -> int:
        return OUT | (IN if self.value else 0)


class PidDescriptor(Pollable):
    """A pidfd."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        process.watchers.append(self)

    def events(self) -> int:
        return IN if self.process.is_dead else 0

    def close(self, process: Process) -> None:
        if self in self.process.watchers:
            self.process.watchers.remove(self)
        super().close(process)


# --- as processes see them -------------------------------------------------------------------------------


class socket:  # noqa: N801  # the standard library's name
    """See socket.socket; of Unix sockets what is used."""

    def __init__(
        self, family: int = -1, kind: int = -1, proto: int = 0, *, fileno: int | None = None
    ) -> None:
        self._process: Process = current_thread().process
        kernel = self._process.kernel
        kernel.sockets += 1
        self.number = kernel.sockets
        self._is_blocking = True
        self._thing: Any = None
        self._listens_at = ""
        self._number = -1
        if fileno is not None:
            self._number, self._thing = fileno, self._process.get(fileno)
        else:
            point()
            self._thing = Stream(self._process.kernel, self._process)
            self._number = self._process.open(self._thing)

    def fileno(self) -> int:
        return self._number

    def setblocking(self, blocking: bool) -> None:
        self._is_blocking = blocking
        self._timeout: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        self._is_blocking, self._timeout = True, seconds

    def connect(self, path: str) -> None:
        point()
        listener = self._process.kernel.files.listener_at(path)
        if listener.is_closed:
            raise refused(errno.ECONNREFUSED)
        if len(listener.backlog) >= self._process.kernel.backlog:
            raise refused(errno.EAGAIN)
        other = Stream(self._process.kernel, listener.owner)
        other.peer, self._thing.peer = self._thing, other
        listener.backlog.append(other)
        listener.changed()

    def bind(self, path: str) -> None:
        self._listens_at = path
        self._process.kernel.files.make_socket(path)

    def listen(self, backlog: int = 0) -> None:
        self._process.kernel.streams.pop(self._thing, None)
        listener = Listener(self._process)
        listener.references = 1
        self._thing = self._process.descriptors[self._number] = listener
        self._process.kernel.files.node(self._listens_at).listener = listener

    def accept(self) -> tuple[socket, None]:
        point()
        if not self._thing.backlog:
            raise refused(errno.EAGAIN)
        process = self._process
        if len(process.descriptors) >= process.most_descriptors:
            raise refused(errno.EMFILE)
        stream = self._thing.backlog.pop(0)
        return socket(fileno=process.open(stream)), None

    def send(self, data: Any) -> int:
        point()
        sent = self._open().send(data)
        point()
        return int(sent)

    def recv(self, most: int) -> bytes:
        point()
        stream = self._open()
        until = None
        if self._is_blocking and getattr(self, "_timeout", None) is not None:
            until = here.scheduler.now + self._timeout
        while True:
            try:
                return bytes(stream.receive(most))
            except BlockingIOError:
                if not self._is_blocking:
                    raise
                if not wait_for([stream], until) and not stream.inbox:
                    raise TimeoutError("timed out") from None

    def _open(self) -> Any:
        if self._number < 0:
            raise refused(errno.EBADF)
        return self._thing

    def shutdown(self, how: int) -> None:
        if self._thing.peer is None or self._thing.has_end:
            raise refused(errno.ENOTCONN)
        self._open().shut()

    def close(self) -> None:
        number, self._number = self._number, -1
        if number >= 0 and not self._process.is_dead and self._process.kernel.is_running:
            self._process.close(number)

    def __del__(self) -> None:
        if getattr(self, "_number", -1) >= 0:
            self.close()

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        peer = self._thing.peer.owner
        if option == SO_PEERPIDFD:
            if not self._process.kernel.knows_peerpidfd:
                raise refused(errno.ENOPROTOOPT)
            if peer.is_dead:
                raise refused(errno.ESRCH)
            return self._process.open(PidDescriptor(peer))
        is_seen = peer.namespace == self._process.namespace
        return struct.pack("3i", peer.pid if is_seen else 0, 1000, 1000)


def socketpair() -> tuple[socket, socket]:
    process = current_thread().process
    one, other = connected(process.kernel, process, process)
    return socket(fileno=process.open(one)), socket(fileno=process.open(other))


class poll:  # noqa: N801
    """See select.poll."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}
        self._process: Process = current_thread().process

    def register(self, descriptor: int, events: int = IN | OUT) -> None:
        self._wanted[descriptor] = events

    modify = register

    def unregister(self, descriptor: int) -> None:
        del self._wanted[descriptor]

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        seconds = None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
        return self._poll(seconds, NVAL)

    def _poll(self, seconds: float | None, closed: int) -> list[tuple[int, int]]:
        point()
        process = self._process
        until = None if seconds is None else here.scheduler.now + seconds
        while True:
            ready, things = [], []
            for descriptor, wanted in self._wanted.items():
                thing = process.descriptors.get(descriptor)
                if thing is None:
                    if closed:
                        ready.append((descriptor, closed))
                    continue
                if not isinstance(
                    thing, Pollable
                ):  # the number of one that was closed is a file's by now
                    ready.append((descriptor, wanted & (IN | OUT)))
                    continue
                things.append(thing)
                events = thing.events() & (wanted | HUP | ERR)
                if events:
                    ready.append((descriptor, events))
            if ready or (until is not None and here.scheduler.now >= until):
                return ready
            wait_for(things, until)


NVAL = real_select.POLLNVAL


class epoll(poll):  # noqa: N801
    """See select.epoll. What is ready comes in any order."""

    def poll(self, timeout: float | None = None, most: int = -1) -> list[tuple[int, int]]:  # type: ignore[override]
        ready = self._poll(None if timeout is None or timeout < 0 else timeout, 0)
        if len(ready) > 1:
            self._process.kernel.chance.shuffle(ready)
        return ready

    def close(self) -> None:
        self._wanted.clear()


class _Module:
    """A module of the standard library, some names of which are replaced; its constants are the real ones."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        if name.lstrip("_").isupper() or name.lstrip("_")[:1].isupper():
            value = self.__dict__[name] = getattr(self._real, name)
            return value
        raise AttributeError(f"{self._real.__name__}.{name} is not simulated")


socket_module = _Module(
    real_socket, socket=socket, socketpair=socketpair, gethostname=lambda: "simulated",
    error=OSError, timeout=TimeoutError,
)  # fmt: skip
_socket_module = _Module(real_socket, socket=socket)
select_module = _Module(real_select, poll=poll, epoll=epoll)

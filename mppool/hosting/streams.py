"""The connections of this process to hosts: one call at a time on each, and never an answer for another call.

A stream whose call was left before its answer had been read (a timeout, an interrupt, an exception in another thread) is
closed and never used again: the answer would be taken for that of the next call. `_pending` is set before the first byte is
sent and cleared after the last one was read, so it tells wherever the exception struck.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from mppool.errors import CheckoutTimeout, PoolError, ProtocolError
from mppool.hosting import frames
from mppool.hosting.answers import raise_refusal, token_of
from mppool.hosting.greeting import greeting_on
from mppool.hosting.keeping import KEPT_S, Flag, Right
from mppool.hosting.pipes import Turns, WorkerPipes, from_socket, takes_pipes
from mppool.hosting.values import encode
from mppool.ids import is_stopped, own_process
from mppool.link.troubles import LACKING
from mppool.process.fork import own_mark
from mppool.process.locks import release_own
from mppool.rendezvous.liveness import peer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SLICE_S = 0.05
"""After its time a checkout looks so often whether the host is stopped, or has died."""
_GRACE_S = 2.0
"""A host that lives ends a checkout in time itself; a busy machine may delay its word by so much."""
GREETING_S = 10.0
"""So much longer may a host take that was just started: that is not waiting for a resource."""

_decode = msgspec.msgpack.Decoder().decode
_HEAD = frames.ANSWER.size
_READ_BYTES, _SMALL, _BIG = frames.READ_BYTES, frames.SMALL, frames.BIG
_request, _answer = frames.REQUEST.pack, frames.ANSWER.unpack_from
_TURNS = Turns()
"""Of all streams of this process."""


class HostGone(Exception):
    """The host has closed the stream, or is dead."""


class Stream:
    """One connection to a host. It has one lease at a time.

    _calling: held during a call; a second thread is refused, it does not wait. Reentrant, because an exception may strike
        between its being taken and the block that gives it back: the same thread goes on, and gives back all.
    facts: what the host has told of types, by their names. descriptions: of results, by the numbers that the host gives
        them. host: which of the pool's hosts it leads to.
    lease: the number of its last one; introduced, commits, source: what was said of the resource then.
    is_kept: the last lease was given back, and the host may keep the next one for us: see keeping.py.
    """

    def __init__(self, connection: socket.socket, pool: str, host: int) -> None:
        self._connection = connection
        self._pipes: WorkerPipes | None = None
        self._write: Any = connection.sendall
        self._read: Any = connection.recv
        self._pool = pool
        self._calling = threading.RLock()
        self._pending = False
        self._request = 0
        self._left = b""
        self._poll: Any = None
        self.mark = own_mark()
        self.facts: dict[str, Any] = {}
        self.descriptions: dict[int, Any] = {}
        self.is_closed = False
        self.host_pid = peer_of(connection).pid
        self.host = host
        self.number = 0
        self.lease = 0
        self.introduced: Any = None
        self.commits = False
        self.source = 0
        self.is_kept = False
        self._kept_until = 0.0
        self._right: Right | None = None
        self._flag: Flag | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def greet(self, linger: float, deadline: float) -> None:
        """Introduce this process. Raises HostGone, TimeoutError, ProtocolError, and OSError where the system is short of something."""
        own = own_process()
        said = [frames.PROTOCOL, own.pid, own.birth, own.member, linger]
        with self._lock():
            self._begin(encode([0, frames.HELLO, [], *said, takes_pipes(self._connection)]))
            self._wait_for_answer(deadline, GREETING_S)
            try:
                greeting = greeting_on(self._connection, _TURNS)
            except OSError as error:
                if error.errno in LACKING:
                    raise
                raise HostGone from error
            self._left, self._pipes, self._right, self._flag = greeting
            if self._pipes is not None:
                self._write, self._read = self._pipes.write, self._pipes.read
                self._poll = None  # it waits at the socket
            kind, body = self._receive()
            self._pending = False
        if kind == frames.ERROR:
            self.close()
            raise_refusal(body, self._pool, self.host_pid)
        _, self.number, *_ = _decode(body)

    def close(self) -> None:
        """For good. Safe at any instruction, and in a finalizer: it is a system call and no lock."""
        self.is_closed = True
        if self.mark[0]:
            try:
                # A copy in a forked child must not keep the host from noticing.
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the host was faster
        self._close_all()

    def _close_all(self) -> None:
        self._connection.close()
        if self._pipes is not None:
            self._pipes.close()

    def wait_for_end(self, seconds: float) -> None:
        """Until the process of the host has ended; so many seconds at most."""
        try:
            pidfd = os.pidfd_open(self.host_pid)
        except OSError:
            return  # it has ended
        try:
            select.select([pidfd], [], [], seconds)
        finally:
            os.close(pidfd)

    def close_inherited(self) -> None:
        """In a forked child: nothing is said on it, and the parent goes on using it."""
        self.is_closed = True
        self._close_all()
        self._right = self._flag = None

    def __del__(self) -> None:
        # Nobody uses it any more. Closing the copy of a forked child says nothing to the host.
        self._close_all()

    # --- calls --------------------------------------------------------------------------------------------------

    def call(self, lease: int, op: int, freed: list[int], *more: Any) -> tuple[int, Any]:
        """One request of plain values, and its answer."""
        return self.ask(encode([lease, op, freed, *more]))

    def ask(self, body: bytes) -> tuple[int, Any]:
        """One request, and its answer: its kind, and what it says.

        Raises HostGone, and PoolError where another thread is just using the stream.
        """
        # This is in the way of each statement, so it does by itself what the others have functions for.
        lock: Any = self._calling
        if lock._is_owned() or not lock.acquire(False):
            self._take()
        try:
            if self._pending or self.is_closed:
                self._refuse_unusable()
            self._request = number = (self._request + 1) & 0xFFFFFFFF
            self._pending = True
            size = len(body)
            if size <= _SMALL:
                self._write(_request(size, number) + body)
            else:
                self._send(body)
            data = self._read(_READ_BYTES)
            if len(data) >= _HEAD:
                length, answered, kind = _answer(data)
                if answered == number and len(data) == length + 4:  # nearly always
                    self._pending = False
                    return kind, data[_HEAD:]
            elif not data:
                raise HostGone
            self._left = data
            answer = self._receive()
            self._pending = False
            return answer
        except (OSError, ValueError) as error:  # ValueError: it was closed here
            self.close()
            raise HostGone from error
        except BaseException:
            if self._pending:
                self.close()
            raise
        finally:
            self._calling.release()

    def _take(self) -> None:
        """Have the stream to this thread alone."""
        lock: Any = self._calling
        if lock._is_owned():  # an exception has struck between its being taken and given back
            release_own(lock)
        if not lock.acquire(False):
            self._refuse_second_thread()

    def ask_for_all(self, body: bytes, take: Callable[[Any], None]) -> tuple[int, Any]:
        """The same with an answer in several parts. take: told of each but the last."""
        with self._lock():
            self._check_usable()
            self._begin(body)
            while True:
                kind, body = self._receive()
                if kind != frames.MORE:
                    self._pending = False
                    return kind, body
                take(body)

    def tell(self, lease: int, op: int, *more: Any) -> None:
        """One request that is not answered. Raises HostGone."""
        with self._lock():
            self._check_usable()
            self._pending = True
            self._request = (self._request + 1) & 0xFFFFFFFF
            self._send(encode([lease, op, [], *more]))
            self._pending = False

    def check_out(
        self,
        timeout: float | None,
        deadline: float | None,
        identity: str | None,
        token: Callable[[bool], tuple[Any, Any]] | None,
        noted: frames.Noted = ("", "", None),
    ) -> tuple[int, Any]:
        """The answer to a checkout. token: gives one where the host wants it, with its end. noted: see frames.

        Raises HostGone, and CheckoutTimeout where the host is stopped.
        """
        steps = self.checking_out(timeout, identity, token is not None, noted)
        answer: Any = None
        try:
            while True:
                refused = steps.send(answer)
                answer = None
                if refused is None:
                    self._wait_for_answer(deadline, self.grace(timeout))
                else:
                    assert token is not None
                    answer = token_of(token, refused)
        except StopIteration as end:
            answered: tuple[int, Any] = end.value
            return answered
        finally:
            steps.close()

    def checking_out(
        self, timeout: float | None, identity: str | None, has_token: bool, noted: frames.Noted
    ) -> Generator[bool | None, Any, tuple[int, Any]]:
        """The steps of a checkout, for a caller that knows how to wait.

        Yields None where something has to come first; else a token is wanted, and what is yielded says whether the last
        one was refused: `token_of` makes what is sent in then. Closed before its end, it closes the stream.
        """
        with self._lock():
            self._check_usable()
            self._begin(encode([0, frames.CHECKOUT, [], timeout, identity, has_token, *noted]))
            while True:
                yield None
                kind, body = self._receive()
                if kind != frames.TOKEN_WANTED:
                    self._pending = False
                    return kind, body
                found = yield _decode(body)[0]
                self._send(encode([0, frames.TOKEN, [], *found]))

    @staticmethod
    def grace(timeout: float | None) -> float | None:
        """How much longer than its timeout a checkout waits for the word of its host; None: as long as it takes."""
        return None if timeout == 0 else _GRACE_S

    @property
    def has_unread(self) -> bool:
        """Whether something has come already that nobody has read."""
        return bool(self._left)

    def fileno(self) -> int:
        """To wait for what comes."""
        return self._connection.fileno() if self._pipes is None else self._pipes.fileno()

    # --- what the host keeps for us -----------------------------------------------------------------------------

    def give_back(self, lease: int, how: int, *, keeps: bool) -> None:
        """End a lease. keeps: the next one may be kept for us. Raises HostGone."""
        right, flag = self._right, self._flag
        keeps = keeps and right is not None and flag is not None and not flag.is_set()
        if keeps and right is not None:
            right.give()  # first: the host that reads what is told next may want it back
        self.tell(lease, frames.RELEASE, how, keeps)
        self.is_kept = keeps
        self._kept_until = monotonic() + KEPT_S

    def has_kept(self) -> bool:
        """Have the lease that the host keeps for us, where it does. Its number is `lease` then."""
        self.is_kept = False
        right, flag = self._right, self._flag
        is_late = monotonic() >= self._kept_until  # and still there: the host has stopped
        if right is None or flag is None or is_late or flag.is_set() or not right.take():
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fileno(), select.POLLIN)
        if self._poll.poll(0):  # nothing is to be said, so that is its end
            self.close()
            return False
        self.lease += 1
        return True

    def _lock(self) -> _Exclusive:
        return _Exclusive(self)

    def _check_usable(self) -> None:
        if self._pending or self.is_closed:
            self._refuse_unusable()

    def _refuse_unusable(self) -> NoReturn:
        if self._pending:  # an exception struck in the middle of an earlier call
            self.close()
        raise HostGone

    def _refuse_second_thread(self) -> NoReturn:
        raise PoolError(
            f"pool {self._pool!r}: another thread is just using this lease; a lease is for one thread at a time: give "
            "each its own checkout"
        )

    def _begin(self, body: bytes) -> None:
        self._request = (self._request + 1) & 0xFFFFFFFF
        self._left = b""
        self._pending = True
        self._send(body)

    def _send(self, body: bytes) -> None:
        size, number = len(body), self._request
        try:
            if size <= _SMALL or self._pipes is None:
                self._write(_request(size, number) + body)
            else:
                self._write(_request(size | _BIG, number))
                self._connection.sendall(body)
        except (OSError, ValueError) as error:
            self.close()
            raise HostGone from error

    def _receive(self) -> tuple[int, Any]:
        """The next frame that belongs to this request. Raises HostGone."""
        data, self._left = self._left, b""
        while len(data) < _HEAD:
            data = data + self._more() if data else self._more()
        length, request, kind = _answer(data)
        if request != self._request:
            self.close()
            raise ProtocolError(
                f"pool {self._pool!r}: an answer to request {request} has come instead of {self._request}"
            )
        if length & _BIG:
            self._left = data[_HEAD:]
            return kind, self._from_socket((length ^ _BIG) - frames.REST_OF_ANSWER, b"")
        end = length + 4
        if self._pipes is None and len(data) < end:
            return kind, self._from_socket(length - frames.REST_OF_ANSWER, data[_HEAD:])
        while len(data) < end:
            data += self._more()
        self._left = data[end:]
        return kind, memoryview(data)[_HEAD:end]

    def _from_socket(self, length: int, begun: bytes) -> memoryview:
        try:
            return from_socket(self._connection, length, begun)
        except OSError as error:
            raise HostGone from error

    def _more(self) -> bytes:
        try:
            data: bytes = self._read(_READ_BYTES)
        except (OSError, ValueError) as error:
            raise HostGone from error
        if not data:
            raise HostGone
        return data

    def _wait_for_answer(self, deadline: float | None, grace: float | None) -> None:
        """Until something has come. Past the deadline, as long as the host lives and is not stopped.

        grace: so much longer at most; None: opening takes its time. Raises CheckoutTimeout.
        """
        if self._left or deadline is None:
            return
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fileno(), select.POLLIN)
        while True:
            left = deadline - monotonic()
            if self._poll.poll((left if left > 0 else SLICE_S) * 1000):
                return
            self.check_late(deadline, grace)

    def check_late(self, deadline: float | None, grace: float | None) -> None:
        """Nothing has come yet. Raises CheckoutTimeout past the deadline, where the host is stopped or the grace is over."""
        late = -1.0 if deadline is None else monotonic() - deadline
        if late < 0:
            return
        stopped = is_stopped(self.host_pid)
        if stopped or (grace is not None and late > grace):
            why = "is stopped" if stopped else "does not answer"
            raise CheckoutTimeout(
                f"pool {self._pool!r}: the host (pid {self.host_pid}) {why}; its resources cannot be had before it "
                "goes on or ends"
            )


class _Exclusive:
    """A block in which one thread uses a stream. What leaves it in the middle of a call closes the stream."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._stream._take()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        stream = self._stream
        try:
            if error is not None and stream._pending:
                stream.close()
        finally:
            stream._calling.release()

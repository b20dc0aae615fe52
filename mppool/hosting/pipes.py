"""What is small travels through two pipes beside the socket of a stream: a round trip takes two thirds of the time.

A socket of the kernel allocates and accounts a buffer for each message, and wakes the other end once more when
it was read. A pipe does neither. Requests and answers of up to a page go through pipes, and the first bytes of longer
ones, which say that the rest is on the socket. So nothing that is written to a pipe waits for its reader. A writer that has to
wait does so on the socket, where the end of the other side is noticed.

The socket is also what says who is at the other end, and whether it is still there.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from io import FileIO
from time import monotonic
from typing import TYPE_CHECKING, final

from mppool.process.alertness import Alertness

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

BRISK_S = 0.001
"""A sleep that ends within this is short."""
AWAKE_S = 0.0001
"""So long does a wait stay awake: a small statement has been served by then."""
AWAY_S = AWAKE_S / 2
"""If others had our CPU for so long, the machine is busy. There a thread that sleeps gets it back earlier than one that offers it."""

SMALLEST_PIPE = 4096
"""What any pipe takes at once, as a whole, if it is empty."""


def takes_pipes(connection: socket.socket) -> bool:
    """Whether this worker reads pipes. Not where gevent has patched sockets: only at those other greenlets go on meanwhile."""
    return not type(connection).__module__.startswith("gevent")


def is_pipe(descriptor: int) -> bool:
    """Whether a descriptor that has come is one of a pipe: a host that had none left has sent none."""
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def from_socket(connection: socket.socket, length: int, begun: bytes = b"") -> memoryview:
    """So many bytes, of which these have come. Raises OSError at their end too."""
    view = memoryview(bytearray(length))
    got = len(begun)
    view[:got] = begun
    while got < length:
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionResetError("the other end has closed the socket")
        got += count
    return view


@final
class Turns:
    """Whose wait was the last one, of the threads that share an interpreter: where two take turns, neither waits awake.

    They would take the interpreter from each other, and from the one that has something to do.
    """

    __slots__ = ("alertness", "last")

    def __init__(self) -> None:
        self.alertness = Alertness()
        self.last: object = None


@final
class AwakeReader:
    """Reads a pipe. Waits for it awake, for a moment, where that has paid; others may have our CPU meanwhile."""

    __slots__ = ("_alertness", "_own", "_poll", "_sleep", "_turns")

    def __init__(self, pipe: FileIO, turns: Turns) -> None:
        self._sleep = pipe.read
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        self._poll = poll.poll
        self._turns, self._alertness = turns, turns.alertness
        self._own = object()  # not we ourselves: `turns` would keep a closed pipe

    def read(self, size: int) -> bytes:
        """What has come, so many bytes at most; b"" at its end. Raises OSError, and ValueError where it was closed."""
        turns, alertness = self._turns, self._alertness
        if alertness.is_awake and turns.last is self._own:
            self._wait_awake(alertness)
            return self._sleep(size)
        brisk_until = monotonic() + BRISK_S
        data = self._sleep(size)
        alertness.has_slept(briefly=turns.last is self._own and monotonic() < brisk_until)
        turns.last = self._own
        return data

    def _wait_awake(self, alertness: Alertness) -> None:
        """Until something has come, for a moment at most."""
        poll, now = self._poll, monotonic()
        until = now + AWAKE_S
        while not poll(0):
            offered_at = now
            os.sched_yield()
            now = monotonic()
            if now - offered_at > AWAY_S:
                alertness.others_had_the_cpu()
                return
            if now >= until:
                alertness.was_in_vain()
                return
        alertness.has_paid()


def reader_of(pipe: FileIO, turns: Turns) -> Callable[[int], bytes]:
    """What reads the pipe. With a single CPU to wait awake saves nothing: it has to be given away in any case."""
    return AwakeReader(pipe, turns).read if len(os.sched_getaffinity(0)) > 1 else pipe.read


class WorkerPipes:
    """The ends of a worker. Closing them is safe at any instruction."""

    def __init__(self, requests: int, answers: int, turns: Turns) -> None:
        """Descriptors, which belong to this from now on. turns: of all streams of the process."""
        self._requests, self._answers = FileIO(requests, "w"), FileIO(answers, "r")
        self.write, self.read = self._requests.write, reader_of(self._answers, turns)

    def fileno(self) -> int:
        """Where answers come."""
        return self._answers.fileno()

    def close(self) -> None:
        """For good."""
        self._requests.close()
        self._answers.close()


class HostPipes:
    """The ends of a host, and until they were sent those of the worker too.

    _bell: writes requests too, for the thread that finds out that the worker has gone. It never waits.
    """

    def __init__(self, turns: Turns) -> None:
        """turns: of all streams of the host. Raises OSError where no descriptor is left."""
        with contextlib.ExitStack() as made:
            reading, writing = os.pipe()
            self._requests = made.enter_context(FileIO(reading, "r"))
            self._their_requests = made.enter_context(FileIO(writing, "w"))
            reading, writing = os.pipe()
            self._their_answers = made.enter_context(FileIO(reading, "r"))
            self._answers = made.enter_context(FileIO(writing, "w"))
            # Opened a second time: a copy of the descriptor would share its flags with the worker's.
            path = f"/proc/self/fd/{self._requests.fileno()}"
            self._bell = FileIO(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), "w")
            made.pop_all()
        self.write, self.read = self._answers.write, reader_of(self._requests, turns)

    @property
    def theirs(self) -> list[int]:
        """The worker's ends, which are to be sent to it."""
        return [self._their_requests.fileno(), self._their_answers.fileno()]

    def sent(self) -> None:
        """The worker has its ends: nobody else may have them."""
        self._their_requests.close()
        self._their_answers.close()

    def ring(self, data: bytes) -> None:
        """Wake the thread that waits for a request, which reads this; from any thread."""
        with contextlib.suppress(OSError, ValueError):  # full, so nobody waits; closed
            self._bell.write(data)

    def close(self) -> None:
        """For good."""
        self.sent()
        for end in (self._requests, self._answers, self._bell):
            end.close()

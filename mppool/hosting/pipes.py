"""What is small travels through two pipes beside the socket of a stream: a round trip takes two thirds of the time.

A socket of the kernel allocates and accounts a buffer for each message, and wakes the other end once more when
it was read. A pipe does neither. Requests and answers of up to a page go through pipes, and the first bytes of longer
ones, which say that the rest is on the socket. So nothing that is written to a pipe waits for its reader. All waiting is done
on the socket, where the end of the other side is noticed.

The socket is also what says who is at the other end, and whether it is still there.
"""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

SMALLEST_PIPE = 4096
"""What any pipe takes at once, as a whole, if it is empty."""


def takes_pipes(connection: socket.socket) -> bool:
    """Whether this worker reads pipes. Not where gevent has patched sockets: only at those other greenlets go on meanwhile."""
    return not type(connection).__module__.startswith("gevent")


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


class WorkerPipes:
    """The ends of a worker. Closing them is safe at any instruction."""

    def __init__(self, requests: int, answers: int) -> None:
        """Descriptors, which belong to this from now on."""
        self._requests, self._answers = FileIO(requests, "w"), FileIO(answers, "r")
        self.write, self.read = self._requests.write, self._answers.read

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

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self._requests, self._their_requests = FileIO(reading, "r"), FileIO(writing, "w")
        reading, writing = os.pipe()
        self._their_answers, self._answers = FileIO(reading, "r"), FileIO(writing, "w")
        # Opened a second time: a copy of the descriptor would share its flags with the worker's.
        path = f"/proc/self/fd/{self._requests.fileno()}"
        self._bell = FileIO(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), "w")
        self.write, self.read = self._answers.write, self._requests.read

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

"""The first answer of a host, and the descriptors that come with it: ends of pipes, and what says that a lease is kept."""

from __future__ import annotations

import errno
import os
import socket
from typing import NamedTuple

from mppool.hosting.frames import READ_BYTES
from mppool.hosting.keeping import Flag, Right
from mppool.hosting.pipes import Turns, WorkerPipes, is_pipe

_MOST = 4
"""So many descriptors come at most."""


class Greeting(NamedTuple):
    """data: the first bytes of the answer. pipes: None where the host has none, or the worker takes none. right, flag: None
    where the host keeps no leases.
    """

    data: bytes
    pipes: WorkerPipes | None
    right: Right | None
    flag: Flag | None


def greeting_on(connection: socket.socket, turns: Turns) -> Greeting:
    """Receive it. Raises OSError; with EMFILE where this process has no room for the descriptors."""
    data, descriptors, flags, _ = socket.recv_fds(
        connection, READ_BYTES, _MOST, socket.MSG_CMSG_CLOEXEC
    )
    owned = list(descriptors)
    try:
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        has_pipes = bool(descriptors) and is_pipe(descriptors[0])
        more = descriptors[2:] if has_pipes else descriptors
        flag = right = None
        if more:
            owned.remove(more[1])  # it is closed by the flag, whatever happens
            flag = Flag(more[1])
        owned.clear()  # nothing fails from now on
        if more:
            right = Right(more[0])
        pipes = WorkerPipes(descriptors[0], descriptors[1], turns) if has_pipes else None
        return Greeting(data, pipes, right, flag)
    finally:
        for descriptor in owned:
            os.close(descriptor)

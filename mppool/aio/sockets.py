"""The end of a connection whose event loop does not run any more."""

from __future__ import annotations

import os
import socket
from typing import Any


def shut_down(transport: Any) -> None:
    """End the connection of an asyncio transport without its loop: the other side sees the end at once.

    The transport keeps its descriptor until it is finalized; a copy of it reaches the same socket.
    """
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None or found.fileno() < 0:
        return
    copy = socket.socket(fileno=os.dup(found.fileno()))
    try:
        copy.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended already
        return
    finally:
        copy.close()

"""One client that a pool hands out, what belongs to one credential, and a client that is being made."""

from __future__ import annotations

import itertools
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mppool.azure.keys import Asked
    from mppool.azure.transports import Wire


class ClientEntry:
    """A client that the pool hands out. `used_at` is written without a lock, by everybody."""

    __slots__ = (
        "client",
        "description",
        "kept",
        "live",
        "loop",
        "made_at",
        "next_use",
        "owner",
        "serial",
        "used_at",
        "uses",
    )

    def __init__(self, client: Any, asked: Asked) -> None:
        self.client = client
        self.serial = asked.serial
        self.kept = asked.kept
        self.live = asked.live
        self.loop = asked.loop_serial
        self.owner = asked.owner
        self.description = f"{type(client).__name__} of {asked.target}"
        self.made_at = self.used_at = monotonic()
        self.uses = 0
        self.next_use = itertools.count(1).__next__  # one step, whichever threads take it


class Owner:
    """What a credential has in this process: one finalizer, however many clients."""

    __slots__ = ("finalizer", "keys", "wires")

    def __init__(self, finalizer: Any) -> None:
        self.finalizer = finalizer
        self.keys: set[Hashable] = set()
        self.wires: set[Wire] = set()


class Build:
    """A client that some thread is building; the others that want it wait until `done`."""

    __slots__ = ("builder", "done", "waiting")

    def __init__(self) -> None:
        self.builder = threading.get_ident()
        self.done = threading.Event()
        self.waiting = 0

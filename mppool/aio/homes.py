"""The event loops of this process that use one pool.

A resource belongs to the loop that opened it. So each loop has keys of its own: the first one those that the pool has
anyway, every further one the same with its number. For the books that is enough: only equal keys are interchangeable.

How a loop ends, and how that is noticed:

    asyncio.run, asyncio.Runner, uvicorn, pytest-asyncio, anyio     they shut down asynchronous generators: there is one
                                                                    of ours, whose `finally` closes in order
    loop.close() alone                                              the background thread sees it when it next looks
                                                                    around; what is open is ended without the loop
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.aio.loop_tasks import LoopTasks
from mppool.aio.watch import Watch
from mppool.core.events import Declare
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.process.fork import make_immortal, renew_in_children
from mppool.worker.ending import close_soon, retire
from mppool.worker.inventory import NEVER
from mppool.worker.tasks import Desk, running_loop

if TYPE_CHECKING:
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

log = Log("mppool")

_CLOSES_S = 5.0
"""At the end of a loop what is idle is closed in order, within this."""

_LEASES_S = 0.25
"""What is lent when a loop ends may come back for so long: other generators are finished at the same time."""

_POLL_S = 0.005


opens_in: ContextVar[Home] = ContextVar("opens_in")
"""In which loop a resource is opened or a credential asked; unset: for nobody's checkout (`min_size`)."""


class OnLoop:
    """A resource, and where it lives. The resource of an entry of an asynchronous pool.

    is_dirty: it is known to need a reset.
    """

    __slots__ = ("home", "is_dirty", "resource")

    def __init__(self, resource: Any, home: Home) -> None:
        self.resource = resource
        self.home = home
        self.is_dirty = False


class Home:
    """One event loop, as far as one pool is concerned.

    number: tells its keys from those of other loops. pop: takes from the shelf of its own key at once; shelf: that one.
    openings: tasks that open a resource; they belong to the loop's thread.
    tasks: those that run on behalf of the pool.
    """

    def __init__(self, local: LocalPool, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self.local = local
        self.loop = loop
        self.number = number
        self.desk = Desk(local, loop, partial(opens_in.set, self))
        self.is_ending = self.is_over = False
        self.pop: Callable[[], PoolEntry] = _nothing
        self.shelf: deque[PoolEntry] | None = None
        self.notice: AsyncGenerator[None, None] | None = None
        self.openings: set[asyncio.Task[Any]] = set()
        self.watch = Watch(loop)
        self.tasks = LoopTasks(loop)

    def key_for(self, key: str) -> str:
        """The key, in this loop, of what the pool opens for a key."""
        if not self.number:
            return key
        fingerprint, separator, identity = key.partition("\0")
        return f"{fingerprint}#loop{self.number}{separator}{identity}"

    def context(self) -> Context:
        """The caller's; and it says that this is the loop in which a resource is opened, or a credential asked."""
        here = copy_context()
        here.run(opens_in.set, self)
        return here

    def look_at_shelf(self) -> None:
        """The shelf of the own key may be another one now."""
        local = self.local
        if local.asks_plainly:
            key = self.key_for(local.default_key)
            shelves = local.idle.shelves
            shelf = shelves.get(key) if self.number else shelves.of(key)
            if shelf is not self.shelf:
                self.shelf, self.pop = shelf, shelves.popper_of(shelf)

    @property
    def runs(self) -> bool:
        """Whether a hook would be run now, as far as can be seen from a thread."""
        return not self.is_over and self.loop.is_running()

    def entries(self) -> list[PoolEntry]:
        """What this loop has of the pool, openings that have not returned excepted."""
        return [one for one in self.local.entries() if getattr(one.resource, "home", None) is self]

    async def close_in_order(self) -> None:
        """The loop ends: close what is idle, and what comes back or is opened now. No hook begins after this."""
        began = monotonic()
        while (left := self.entries()) and monotonic() < began + _CLOSES_S:
            retire(self.local, left)
            closing = any(entry.state == "closing" for entry in left)
            if not closing and monotonic() >= began + _LEASES_S:
                break
            await asyncio.sleep(_POLL_S)
        self.is_over = True
        # What was not cancelled with the caller's tasks: a loop that stops in the middle of one would leave it half open.
        for opening in self.openings:
            opening.cancel()
        if self.openings:
            await asyncio.wait(set(self.openings), timeout=_CLOSES_S)

    def give_up(self) -> None:
        """The loop is over: end without it what it still has. Called by any thread."""
        self.is_over = True
        self.desk.look_after_deserted()
        self.tasks.end_unbegun()
        for entry in self.entries():
            lent_at = entry.lent_at
            if lent_at > entry.released_at and entry.inventory.kill(entry, lent_at):
                close_soon(entry, "discarded")
        retire(self.local, self.entries())
        for entry in self.entries():
            if entry.state == "open":
                # A task has it that is never run again: it was giving it back, or checking it.
                close_soon(entry, "discarded")


def _nothing() -> PoolEntry:
    raise IndexError


class Homes:
    """All of them, of one pool in this process.

    by_loop: always the same dict, read without a lock. _changing: guards its changes; nothing long happens while it is held.
    """

    def __init__(self, local: LocalPool) -> None:
        self._local = local
        self.by_loop: dict[asyncio.AbstractEventLoop | None, Home] = {}
        self._changing = threading.Lock()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """See Forkable."""
        make_immortal(dict(self.by_loop))
        self.by_loop.clear()  # it stays the same one, see Lender
        self._changing = threading.Lock()

    def first(self) -> Home | None:
        """The one with the keys that the pool is declared with; None: its loop has ended."""
        homes = list(self.by_loop.values())
        for home in homes:
            if not (home.number or home.is_ending or home.loop.is_closed()):
                return home
        return None

    async def here(self) -> Home:
        """Of the running loop. Does not wait. Raises ConfigurationError where it is not asyncio's."""
        loop = running_loop()
        home = self.by_loop.get(loop)
        if home is not None and not home.is_over:
            return home
        if loop is None:
            raise ConfigurationError(
                f"pool {self._local.name!r}: an AsyncPool is used inside a running asyncio event loop (uvloop's and "
                "anyio's on asyncio too). With trio use a Pool of blocking resources: "
                "`await trio.to_thread.run_sync(pool.checkout)`"
            )
        self.look(monotonic())  # whose loops were closed have freed their numbers
        with self._changing:
            taken = {home.number for home in self.by_loop.values()}
            number = next(number for number in range(len(taken) + 1) if number not in taken)
            home = Home(self._local, loop, number)
            self.by_loop[loop] = home
        home.notice = self._until_the_end(home)
        await (
            home.notice.__anext__()
        )  # from now on the loop knows it, and finishes it at its own end
        self._local.member.housekeeper.look_after(self)
        if not number:
            self._declare()
        return home

    async def _until_the_end(self, home: Home) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            home.is_ending = True
            if not home.number:
                self._declare()  # else `min_size` would be filled again
            await home.close_in_order()
            self._remove(home)

    def _remove(self, home: Home) -> None:
        # Before its number is free: the next loop with that number looks at the same shelves.
        home.give_up()
        with self._changing:
            if self.by_loop.get(home.loop) is home:
                del self.by_loop[home.loop]
        if not (home.number or home.is_ending):
            self._declare()

    def _declare(self) -> None:
        """Tell the books whether `min_size` can be opened here; before the first attachment that says it all.

        Also while the pool is closed: another process may open it again.
        """
        member = self._local.member
        if member.inventory.session is not None:
            member.tell(Declare(self._local.declaration()))

    # --- see Keeper ---------------------------------------------------------------------------------------

    def look(self, now: float) -> float:
        """Loops that were closed without a word are over."""
        for home in list(self.by_loop.values()):
            if home.loop.is_closed():
                self._remove(home)
            else:
                home.desk.look_after_deserted()
                home.tasks.end_unbegun()
        return NEVER

    def is_over(self) -> bool:
        """Nothing to look after while no loop uses the pool."""
        return not self.by_loop

"""A simulated process whose actors are tasks of event loops: they check out, use, release, and are cancelled anywhere.

It has one loop after the other, or two beside each other. A loop ends as with asyncio.run, or is only closed: then its
tasks are left to the collector, as which a thread of the process does here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.loop import SimLoop
from tests.simulation.scheduler import current_thread, monotonic
from tests.simulation.worker import GRACE_S, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.simulation.processes import Process
    from tests.simulation.world import World

MOST_TURNS = 8
"""So many turns of its loop a task is given at most before it is cancelled, where these are counted."""

Held = list[Any]
"""A lease, or nothing. The collector does not run in a world: no frame that a traceback keeps may hold a lease itself."""


class TaskWorker(Worker):
    """loops: that run, and in which commands can be run. busy: threads with a loop whose actors act."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world, process)
        self.loops: list[SimLoop] = []

    def _declare(self, manager: Any, name: str, options: dict[str, Any]) -> Any:
        if self.settings.tasks != "apool":
            return super()._declare(manager, name, options)
        return manager.apool(name, self.world.recipes.asynchronous[self.release], **options)

    def _start_actors(self) -> None:
        for number in range(self.settings.loops):
            self.process.start_thread(self._act, f"loop {number}")
            self.busy += 1

    def _is_busy(self) -> bool:
        return bool(self.busy or self.loops)

    # --- loops ---------------------------------------------------------------------------------------------

    def _act(self) -> None:
        try:
            while not self.is_over():
                self._run_loop(self._act_for_a_while)
        finally:
            self.busy -= 1
        if not self.leaves:
            self._run_loop(self._serve)

    def _run_loop(self, function: Callable[[], Awaitable[None]]) -> None:
        loop = SimLoop()
        self.loops.append(loop)
        loop.run_until_complete(function())
        if self.chance.random() >= self.settings.rough:
            loop.finish()
        else:
            self._close(loop)
        self.loops.remove(loop)

    def _close(self, loop: SimLoop) -> None:
        """Without a word, and with tasks in it."""
        self.world.outcome.faults["loop closed"] += 1
        self.world.database.leave(loop)
        loop.close()
        left, loop.tasks = list(loop.tasks), {}
        self.process.start_thread(lambda: self._collect(left), "collector")

    def _collect(self, tasks: list[Any]) -> None:
        """What the collector does some time after a loop was closed with tasks in it."""
        self.world.scheduler.sleep(self.chance.random())
        for task in tasks:
            try:
                task.get_coro().close()
            except RuntimeError:  # it awaits something in its end
                self.world.outcome.done["awaits in its end"] += 1

    async def _serve(self) -> None:
        """Commands come from outside."""
        while not self.leaves:
            await asyncio.sleep(0.5)

    async def _act_for_a_while(self) -> None:
        loop = asyncio.get_running_loop()
        actors = [loop.create_task(self._actor()) for _ in range(self.settings.threads)]
        ends_at = monotonic() + self.chance.expovariate(1.0) * self.settings.loop_life
        while not self.is_over() and monotonic() < ends_at:
            await asyncio.sleep(min(0.5, max(0.0, ends_at - monotonic())))
        if self.is_over():
            await asyncio.wait(actors)

    def in_loop(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """What a coroutine function gives, in a loop of this process. Called in another thread.

        Raises PoolClosed where the loop has ended.
        """
        scheduler, found = self.world.scheduler, Held()
        while not self.loops and not self.leaves:
            scheduler.sleep(0.1)

        async def run() -> None:
            try:
                found.append((await function(), None))
            except BaseException as error:  # it is raised where it is waited for
                found.append((None, error))

        loop = self.loops[0] if self.loops else None
        if loop is not None:
            loop.call_soon_threadsafe(lambda: loop.create_task(run()))
        while loop is not None and not found and not loop.is_closed():
            scheduler.sleep(0.01)
        value, error = found.pop() if found else (None, asyncio.CancelledError())
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            raise self.errors.PoolClosed("the loop has ended")
        if error is not None:
            raise error
        return value

    # --- actors --------------------------------------------------------------------------------------------

    async def _actor(self) -> None:
        while not self.is_over():
            await self._rest(self._length_of_pause())
            use = self._begin_use()
            if self.chance.random() < self.settings.cancelled:
                await self._cancel(use)
            await asyncio.wait([use])
            if not use.cancelled() and (error := use.exception()) is not None:
                self.process.crashed(current_thread(), error)

    def _begin_use(self) -> asyncio.Task[None]:
        loop: Any = asyncio.get_running_loop()
        use: asyncio.Task[None] = loop.create_task(self._use())
        loop.uses[use] = None
        use.add_done_callback(lambda _: loop.uses.pop(use))
        return use

    async def _rest(self, seconds: float) -> None:
        until = monotonic() + seconds
        while not self.is_over() and monotonic() < until:
            await asyncio.sleep(min(5.0, max(0.0, until - monotonic())))

    async def _cancel(self, use: asyncio.Task[None]) -> None:
        """At some await; it ends soon."""
        chance, settings = self.chance, self.settings
        if chance.random() < 0.5:
            for _ in range(chance.randint(0, MOST_TURNS)):
                await asyncio.sleep(0)
        else:
            longest = 2 * max(settings.login, settings.hold, settings.close, settings.check, 0.02)
            await asyncio.sleep(chance.random() ** 2 * longest)
        if use.cancel():
            self.world.outcome.faults["task cancelled"] += 1
        began, stopped = monotonic(), self.process.stopped_so_far()
        await asyncio.wait([use])
        waited = monotonic() - began - (self.process.stopped_so_far() - stopped)
        # It gives back what it has, which may be closed, or checked.
        if waited > GRACE_S + 2 * (settings.close + settings.check):
            self.world.trouble(
                f"a task of {self.process} ends {waited:.3f} s after it was cancelled"
            )

    def _cancel_the_oldest(self) -> None:
        """In the same turn in which something was released, and perhaps given to it."""
        loop: Any = asyncio.get_running_loop()
        for use in loop.uses:
            if use is not asyncio.current_task():
                self.world.outcome.faults["task cancelled"] += use.cancel()
                return

    async def _use(self) -> None:
        identity = self.chance.choice(self.settings.identities)
        timeout = self.chance.choice(self.settings.timeouts)
        held = await self._check_out_here(timeout, identity, self.lane())
        if not held:
            return
        session, database = held[0].resource, self.world.database
        database.lend(session, identity, self.release)
        try:
            if seconds := self._length_of_use():
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            database.give_back(session)
            await self.release_now(held)
            raise
        except GeneratorExit:  # the loop was closed: there is nothing that could be awaited
            database.give_back(session)
            raise
        database.give_back(session)
        await self._release(held)

    async def _release(self, held: Held) -> None:
        lease, drawn = held.pop(), self.chance.random()
        if drawn < 0.02:
            self.world.outcome.done["discarded"] += 1
            if self.settings.tasks == "apool":
                await lease.discard()
            else:  # it blocks there
                self.process.start_thread(lease.discard, "discard")
        elif drawn < 0.04:
            self.world.outcome.done["leaked"] += 1
        else:
            await lease.__aexit__(None, None, None)
            if self.chance.random() < self.settings.cancelled / 4:
                self._cancel_the_oldest()
            if drawn < 0.06:
                await lease.__aexit__(None, None, None)  # refused

    async def release_now(self, held: Held) -> None:
        await held.pop().__aexit__(None, None, None)

    async def _check_out_here(
        self, timeout: float | None, identity: str | None, lane: str | None = None
    ) -> Held:
        judge, held, pauses = self._waits(timeout), Held(), False
        pool = self.chance.choice(self.pools) if self.settings.two_members else self.pool
        checkout = pool.checkout if self.settings.tasks == "apool" else pool.acheckout
        try:
            credential = self.credentials.get(identity)
            held.append(
                await checkout(timeout, identity=identity, credential=credential, lane=lane)
            )
        except self.errors.PoolError as error:
            pauses = self._refused(error)
        else:
            self.world.outcome.done["checkouts of tasks"] += 1
        judge()
        if pauses:
            await asyncio.sleep(0.5)
        return held

    # --- from other threads: see Worker --------------------------------------------------------------------

    def check_out(
        self, timeout: float | None, identity: str | None = None, lane: str | None = None
    ) -> Any:
        held = self.in_loop(lambda: self._check_out_here(timeout, identity, lane))
        return _Lent(self, held) if held else None

    def resize(self, size: int) -> None:
        if self.settings.tasks != "apool":
            super().resize(size)
        else:
            self.in_loop(lambda: self.pool.resize(max_size=size))

    def reset(self, over: float) -> None:
        if self.settings.tasks != "apool":
            super().reset(over)
        else:
            self.in_loop(lambda: self.pool.reset(over=over))

    def drain(self, seconds: float) -> None:
        if self.settings.tasks != "apool":
            super().drain(seconds)
        else:
            self.in_loop(lambda: self.pool.drain(seconds))

    def close(self, *, everywhere: bool) -> None:
        if self.settings.tasks != "apool":
            super().close(everywhere=everywhere)
            return
        self.in_loop(lambda: self.pool.aclose(everywhere=everywhere))
        self.world.scheduler.sleep(0.5)
        self.declare_again()

    def _asks(self, function: Callable[[], Any]) -> None:
        if asyncio.iscoroutinefunction(function):
            self.in_loop(function)
        else:
            function()


class _Lent:
    """A lease as threads know it."""

    def __init__(self, worker: TaskWorker, held: Held) -> None:
        self._worker, self._held = worker, held

    @property
    def resource(self) -> Any:
        return self._held[0].resource

    def release(self) -> None:
        self._worker.in_loop(lambda: self._worker.release_now(self._held))

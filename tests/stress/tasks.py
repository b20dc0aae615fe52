"""A worker of a chaos run that uses asyncio: many tasks, cancelled at any moment, in one event loop after the other."""

from __future__ import annotations

import asyncio
import os
import random
import time
import traceback
from typing import Any, NoReturn

from mppool import AsyncPool, CheckoutTimeout, OpenFailed, ServerUnavailable
from tests.processes.async_witness import AsyncSession
from tests.stress.worker import LONGEST_OVERRUN_S, SHORT_TIMEOUTS_S, Worker
from tests.stress.world import LONGEST_WAIT_S


class TaskWorker(Worker):
    """One process. What it does to itself: it cancels tasks, leaks leases, ends its loop, and forks with a running loop."""

    tasks_pool: AsyncPool[AsyncSession]

    def live(self) -> NoReturn:
        try:
            self._begin()
            self.tasks_pool = self.world.declare_tasks(self.world.manager())
            while time.monotonic() < self.ends_at and not self.problems:
                asyncio.run(self._one_loop(), debug=False)
            self._reap(options=0)
        except BaseException:
            self._problem(traceback.format_exc())
        finally:
            self._report()
            os._exit(0)

    def _use_in_handler(self) -> None:
        """A handler that waits for the pool would keep the loop."""

    async def _one_loop(self) -> None:
        until = min(self.ends_at, time.monotonic() + self.chance.uniform(0.2, 3.0))
        self.counts["event loops"] += 1
        tasks = [
            asyncio.ensure_future(self._work(random.Random(self.chance.random()), until))
            for _ in range(self.chance.randint(1, 8))
        ]
        while time.monotonic() < until and not self.problems:
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))
            self._report()
            self._reap(options=os.WNOHANG)
            if self.chance.random() < 0.1:
                self._fork_beside_the_loop()
        _, late = await asyncio.wait(tasks, timeout=LONGEST_WAIT_S + 10)
        if late:
            self._problem(f"{len(late)} tasks hang: {late}")

    def _fork_beside_the_loop(self) -> None:
        """The child of a process with a running loop is a worker with threads."""
        if len(self.children) >= 2 or self.ends_at - time.monotonic() < 0.5:
            return
        seed = self.chance.randrange(1 << 30)
        until = min(self.ends_at, time.monotonic() + self.chance.uniform(0.1, 1.0))
        pid = os.fork()
        if pid == 0:
            made_by = f"a fork beside a loop, of {os.getppid()}"
            Worker(self.world, self.pool, self.recipe, seed, until, made_by).live()
        self.children.add(pid)
        self.world.note("forks beside a loop")

    async def _work(self, chance: random.Random, until: float) -> None:
        while time.monotonic() < until and not self.problems:
            began = time.monotonic()
            use = asyncio.ensure_future(self._one_use(chance))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
                use.cancel()
            try:
                await use
            except asyncio.CancelledError:
                self.counts["tasks cancelled"] += 1
            except BaseException:
                late = time.monotonic() - began
                self._problem(f"a task, after {late:.1f} s: {traceback.format_exc()}")

    async def _one_use(self, chance: random.Random) -> None:
        drawn, began = chance.random(), time.monotonic()
        timeout = chance.choice(SHORT_TIMEOUTS_S) if drawn < 0.1 else LONGEST_WAIT_S
        try:
            lease: Any = await self.tasks_pool.checkout(timeout=timeout)
        except (OpenFailed, ServerUnavailable, CheckoutTimeout) as error:
            why = self._expected(error, timeout, began)
            if why is None:
                raise
            self.counts[why] += 1
            return
        finally:
            if timeout < 1 and time.monotonic() - began > timeout + LONGEST_OVERRUN_S:
                self._problem(f"timeout={timeout} took {time.monotonic() - began:.1f} s in a task")
        if drawn > 0.99:
            return  # leaked: closed by the pool
        try:
            for _ in range(chance.randint(1, 4)):
                await lease.resource.ask()
        except asyncio.CancelledError:
            lease.discard_soon()  # half an answer may be under way
            raise
        if drawn > 0.95:
            await lease.discard()
        else:
            await lease.release()
        self.counts["checkouts of tasks"] += 1

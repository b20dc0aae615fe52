"""AsyncPool in many processes: one cap, forks, servers that are stopped, killed and replaced."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import (
    AsyncLease,
    AsyncPool,
    CheckoutTimeout,
    ConfigurationMismatch,
    ForkedLease,
    PoolManager,
)
from tests.helpers import Fork, wait_until
from tests.processes.async_witness import AsyncSession, AsyncSessionRecipe
from tests.processes.witness import Witness

Forks = Callable[..., Fork]


async def use(pool: AsyncPool[AsyncSession]) -> None:
    async with pool.checkout(timeout=40) as session:
        await session.ask()


def use_much(pool: AsyncPool[AsyncSession], tasks: int = 20, rounds: int = 5) -> None:
    async def main() -> None:
        for _ in range(rounds):
            await asyncio.gather(*(use(pool) for _ in range(tasks)))

    asyncio.run(main())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_the_cap(manager: PoolManager, witness: Witness, method: str) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=3)
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=use_much, args=(pool,)) for _ in range(3)]
    for child in children:
        child.start()
    use_much(pool)
    for child in children:
        child.join(40)
    assert [child.exitcode for child in children] == [0] * 3
    assert witness.figures()["peak"] <= 3
    wait_until(lambda: witness.figures()["held"] == 0, "the end of all sessions")


def test_a_fork_with_a_running_loop(manager: PoolManager, witness: Witness, fork: Forks) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)

    def child(lease: AsyncLease[AsyncSession]) -> None:
        with pytest.raises(ForkedLease):
            lease.resource  # noqa: B018

        async def main() -> None:
            await lease.release()  # it is the parent's: nothing happens
            await use(pool)

        asyncio.run(main())

    async def main() -> None:
        await use(pool)
        async with await pool.checkout() as session:
            lease = await pool.checkout()
            made = fork(child, lease)
            await asyncio.sleep(0.05)
            await lease.release()  # the child may open one now
            await asyncio.to_thread(made.result)
            await session.ask()
            await use(pool)

    asyncio.run(main())
    assert witness.figures()["peak"] <= 2


def test_a_worker_that_is_killed_frees_its_slots(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)

    def hold() -> None:
        async def main() -> None:
            leases = [await pool.checkout() for _ in range(2)]
            await asyncio.sleep(3600)
            del leases

        asyncio.run(main())

    holder = fork(hold)
    wait_until(lambda: witness.figures()["held"] == 2, "the child to hold all")

    async def main() -> None:
        waiting = asyncio.ensure_future(use(pool))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        holder.kill()
        await waiting

    asyncio.run(main())
    assert witness.figures()["peak"] <= 2


async def beats(seen: list[float]) -> None:
    """The longest time in which the loop did nothing else."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.005)
        now = time.monotonic()
        seen.append(now - last)
        last = now


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_is_stopped_or_killed_blocks_no_loop(
    manager: PoolManager, witness: Witness, end: signal.Signals
) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)

    async def longest_pause() -> float:
        first = await pool.checkout()  # lent, so that the next one has to ask
        server = manager.server_pid
        assert server is not None
        os.kill(server, end)
        seen: list[float] = []
        heart = asyncio.ensure_future(beats(seen))
        try:
            if end is signal.SIGSTOP:
                with pytest.raises(CheckoutTimeout):
                    await pool.checkout(timeout=0.3)
                with pytest.raises(CheckoutTimeout):
                    await pool.checkout(timeout=0)
                waiting = asyncio.ensure_future(use(pool))
                await first.release()  # goes to the one that waits, without the server
                await waiting
            else:
                await asyncio.gather(*(use(pool) for _ in range(4)))
                await first.release()
        finally:
            if end is signal.SIGSTOP:
                os.kill(server, signal.SIGCONT)
            heart.cancel()
        await asyncio.gather(*(use(pool) for _ in range(4)))
        return max(seen, default=math.inf)

    async def main() -> float:
        await use(pool)
        shortest = math.inf
        for _ in range(12):  # a busy machine keeps a loop, too: the best of a few
            shortest = min(shortest, await longest_pause())
            if shortest < 0.2:
                break
        return shortest

    # Less than a checkout of 0.3 s, and than the start of a server: no answer of the server's was waited for.
    assert asyncio.run(main()) < 0.2
    assert witness.figures()["peak"] <= 2


def test_no_loop_starts_a_server_itself(manager: PoolManager, witness: Witness) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)

    async def main() -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        heart = asyncio.ensure_future(turn())
        await use(pool)  # an interpreter is started meanwhile
        heart.cancel()
        assert turns > 20

    asyncio.run(main())


def test_gunicorns_hook_leaves_it_to_the_first_request(
    manager: PoolManager, witness: Witness
) -> None:
    from types import SimpleNamespace

    from mppool.integrations.gunicorn import post_worker_init

    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)
    post_worker_init(SimpleNamespace(pid=os.getpid()))
    assert (pool.idle_here, witness.figures()["opened"]) == (0, 0)


def test_it_pickles_and_is_the_same_pool(manager: PoolManager, witness: Witness) -> None:
    import pickle

    pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=2)
    assert pickle.loads(pickle.dumps(pool)) == pool


def lend_to_thread(manager: PoolManager, path: str) -> None:
    with manager.pool("p", list, max_size=3).checkout(timeout=40):
        pass


def lend_to_task(manager: PoolManager, path: str) -> None:
    pool = manager.apool("p", AsyncSessionRecipe(path), max_size=3)
    asyncio.run(use(pool))


@pytest.mark.parametrize("first", ["pool", "apool"])
def test_a_pool_and_an_async_pool_of_one_name_are_refused_between_processes(
    manager: PoolManager, witness: Witness, fork: Forks, first: str
) -> None:
    lends = [lend_to_thread, lend_to_task]
    theirs, mine = lends if first == "pool" else reversed(lends)
    wait_here, go_on = os.pipe()

    def holder() -> None:
        theirs(manager, witness.path)
        os.write(go_on, b"x")
        threading.Event().wait()

    other = fork(holder)
    os.read(wait_here, 1)
    with pytest.raises(ConfigurationMismatch, match="pool 'p'") as refused:
        mine(manager, witness.path)
    assert f"process {other.pid} has declared this name with manager.{first}," in str(refused.value)
    with pytest.raises(ConfigurationMismatch):  # again, and the other process is not disturbed
        mine(manager, witness.path)
    other.kill()
    wait_until(lambda: len(manager.stats()["processes"]) == 1, "the end of the other process")
    mine(manager, witness.path)
    manager.close()
    os.close(wait_here)
    os.close(go_on)

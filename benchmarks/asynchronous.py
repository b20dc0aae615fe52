"""AsyncPool beside asyncpg's own pool and psycopg's AsyncConnectionPool, over one PostgreSQL.

The database is named by $MPPOOL_BENCH_POSTGRES, a URL; without it there is no table. It needs the group `bench`. In the first two
tables nothing is executed but what the pools themselves send: asyncpg's reset at each release, which both it and
AsyncpgRecipe do. In the third each use executes a statement, as a user does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.command import command
from benchmarks.load import private_manager
from benchmarks.tables import Table

VARIABLE = "MPPOOL_BENCH_POSTGRES"
SIZE = 8
TASKS = 64
STATEMENT = "select 1"

ASYNCPG, OURS_ASYNCPG = "asyncpg.Pool", "mppool, AsyncpgRecipe"
PSYCOPG, OURS_PSYCOPG = "AsyncConnectionPool", "mppool, AsyncPsycopgRecipe"

Checkout = Callable[[], AbstractAsyncContextManager[Any]]


def run(quick: bool) -> list[Table]:
    """One process, one loop; each sample is one round with a pool, and the pools take turns."""
    url = os.environ.get(VARIABLE)
    if not url:
        print(f"asynchronous: left out; ${VARIABLE} names no database", file=sys.stderr)
        return []
    rounds, uses = (3, 50) if quick else (15, 1000)
    warm, contended, working = asyncio.run(_samples(url, rounds, uses))
    aims = [
        f"{OURS_ASYNCPG}: at most 1 x {ASYNCPG}",
        f"{OURS_PSYCOPG}: at most 1 x {PSYCOPG}",
    ]
    return [
        Table(
            "asynchronous",
            "asyncio: a connection that lies ready, taken and given back",
            "ns",
            warm,
            (ASYNCPG, PSYCOPG),
            aims=aims,
        ),
        Table(
            "asynchronous contended",
            f"asyncio: {TASKS} tasks take turns at {SIZE} connections, for each use",
            "ns",
            contended,
            (ASYNCPG, PSYCOPG),
            aims=aims,
        ),
        Table(
            "asynchronous working",
            f"asyncio: the same, and each use executes `{STATEMENT}`",
            "ns",
            working,
            (ASYNCPG, PSYCOPG),
            aims=aims,
        ),
    ]


async def _samples(url: str, rounds: int, uses: int) -> list[dict[str, list[float]]]:
    """Alone, together, and together with a statement in each use."""
    async with _pools(url) as checkouts:
        measured: list[dict[str, list[float]]] = [
            {name: [] for name in checkouts} for _ in range(3)
        ]
        for _ in range(rounds + 1):  # the first one opens
            for name, checkout in checkouts.items():
                measured[0][name].append(await _alone(checkout, uses))
                measured[1][name].append(await _together(checkout, uses, _nothing))
                measured[2][name].append(await _together(checkout, uses, _a_statement))
        return [{name: samples[1:] for name, samples in figures.items()} for figures in measured]


async def _nothing(_: Any) -> None:
    await asyncio.sleep(0)


async def _a_statement(connection: Any) -> None:
    await connection.execute(STATEMENT)


async def _alone(checkout: Checkout, uses: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(uses):
        async with checkout():
            pass
    return (time.perf_counter_ns() - began) / uses


async def _together(checkout: Checkout, uses: int, work: Callable[[Any], Awaitable[None]]) -> float:
    async def use() -> None:
        for _ in range(uses // TASKS + 1):
            async with checkout() as connection:
                await work(connection)

    began = time.perf_counter_ns()
    await asyncio.gather(*(use() for _ in range(TASKS)))
    return (time.perf_counter_ns() - began) / ((uses // TASKS + 1) * TASKS)


@asynccontextmanager
async def _pools(url: str) -> AsyncIterator[dict[str, Checkout]]:
    import asyncpg
    from psycopg_pool import AsyncConnectionPool

    from mppool.asyncpg import AsyncpgRecipe
    from mppool.psycopg import AsyncPsycopgRecipe

    async with AsyncExitStack() as stack:
        manager = stack.enter_context(private_manager())
        theirs = await stack.enter_async_context(
            asyncpg.create_pool(url, min_size=SIZE, max_size=SIZE)
        )
        psycopgs = await stack.enter_async_context(
            AsyncConnectionPool(url, min_size=SIZE, max_size=SIZE, open=False)
        )
        ours = manager.apool("asyncpg", AsyncpgRecipe(url), max_size=SIZE)
        stack.push_async_callback(ours.aclose)
        others = manager.apool("psycopg", AsyncPsycopgRecipe(url), max_size=SIZE)
        stack.push_async_callback(others.aclose)
        yield {
            ASYNCPG: theirs.acquire,
            OURS_ASYNCPG: ours.checkout,
            PSYCOPG: psycopgs.connection,
            OURS_PSYCOPG: others.checkout,
        }


if __name__ == "__main__":
    command({"asynchronous": run})

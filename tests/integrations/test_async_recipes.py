"""AsyncpgRecipe and AsyncPsycopgRecipe over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from mppool import AsyncRecipe, ConfigurationError, InProcessManager, OpenFailed
from mppool.asyncpg import AsyncpgRecipe
from mppool.psycopg import AsyncPsycopgRecipe
from tests.aio.things import take_all, until
from tests.helpers import wait_until
from tests.integrations.postgresql import Database
from tests.secrecy import MARK

Make = Callable[..., AsyncRecipe[Any]]


async def scalar(connection: Any, query: str) -> Any:
    """The one value that a query gives, with either driver."""
    if hasattr(connection, "fetchval"):
        return await connection.fetchval(query)
    cursor = await connection.execute(query)
    return (await cursor.fetchone())[0]


@pytest.fixture(params=["asyncpg", "psycopg"])
def make(request: pytest.FixtureRequest, postgresql: Database) -> Make:
    pytest.importorskip(request.param)
    where = f"postgresql://postgres:{MARK}@127.0.0.1:{postgresql.port}/{postgresql.name}"
    kind: Any = {"asyncpg": AsyncpgRecipe, "psycopg": AsyncPsycopgRecipe}[request.param]
    return lambda **options: kind(where, **options)


def test_what_the_last_user_left_is_gone(make: Make, postgresql: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(), max_size=1)

        async def main() -> None:
            async with pool.checkout() as connection:
                await scalar(connection, "select 1")
                await connection.execute("create table t (n int)")
                await connection.execute("begin") if hasattr(connection, "fetchval") else None
                await connection.execute("insert into t values (1)")
            assert "idle in transaction" not in postgresql.states()
            async with pool.checkout() as again:
                assert again is connection
                assert await scalar(again, "select to_regclass('t') is null") is (
                    not hasattr(again, "fetchval")
                )

        asyncio.run(main())
    wait_until(lambda: not postgresql.session_pids(), "the end of the session")


def test_settings_are_reset_where_that_is_asked_for(make: Make) -> None:
    name = type(make()).__name__
    recipe = make() if name == "AsyncpgRecipe" else make(discard=True)
    with InProcessManager() as manager:
        pool = manager.apool("p", recipe, max_size=1)

        async def main() -> None:
            async with pool.checkout() as connection:
                before = await scalar(connection, "show work_mem")
                await connection.execute("set work_mem = '77MB'")
            async with pool.checkout() as connection:
                assert await scalar(connection, "show work_mem") == before

        asyncio.run(main())


def test_listeners_are_gone_and_a_reset_of_ones_own_is_called(postgresql: Database) -> None:
    """Where a connection has nothing but settings to reset, its recipe sends the statement itself."""
    asyncpg = pytest.importorskip("asyncpg")
    where = f"postgresql://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}"

    class Own(asyncpg.Connection):  # type: ignore[misc]
        resets = 0

        async def reset(self, *, timeout: float | None = None) -> None:
            type(self).resets += 1
            await super().reset(timeout=timeout)

    async def main(recipe: AsyncpgRecipe) -> None:
        heard: list[Any] = []
        pool = manager.apool("p", recipe, max_size=1)
        async with pool.checkout() as connection:
            await connection.add_listener("news", lambda *what: heard.append(what))
            connection.add_log_listener(lambda *what: heard.append(what))
            await connection.execute("select pg_advisory_lock(1)")
        async with pool.checkout() as again:
            assert again is connection
            assert await scalar(again, "select count(*) from pg_listening_channels()") == 0
            assert (
                await scalar(again, "select count(*) from pg_locks where locktype = 'advisory'")
                == 0
            )
            await again.execute("notify news; do $$ begin raise notice 'hello'; end $$")
        await pool.aclose()
        assert heard == []

    for kind in (asyncpg.Connection, Own):
        with InProcessManager() as manager:
            asyncio.run(main(AsyncpgRecipe(where, connection_class=kind)))
    assert Own.resets == 2


def test_a_session_has_the_name_of_its_application(make: Make) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(application_name="shop web"))

        async def main() -> None:
            async with pool.checkout() as connection:
                assert await scalar(connection, "show application_name") == "shop web"

        asyncio.run(main())


def test_ended_sessions_are_replaced_before_anybody_gets_one(
    make: Make, postgresql: Database
) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(), max_size=3, check_idle_for=0.0)

        async def main() -> None:
            for lease in await take_all(pool, 3):
                await scalar(lease.resource, "select 1")
                await lease.release()
            before = postgresql.session_pids()
            await asyncio.to_thread(postgresql.end_sessions)
            for lease in await take_all(pool, 3):
                assert await scalar(lease.resource, "select 1") == 1
                await lease.release()
            assert not before & postgresql.session_pids()
            counters = (await pool.stats())["counters"]
            assert counters["unhealthy"] == 1  # the others were replaced without a check

        asyncio.run(main())


def test_a_session_that_ends_under_its_user_is_not_kept(make: Make, postgresql: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(), max_size=1)

        async def main() -> None:
            async with pool.checkout() as connection:
                await scalar(connection, "select 1")
                await asyncio.to_thread(postgresql.end_sessions)
                await until(lambda: not postgresql.session_pids(), "the end of the session")
            async with pool.checkout() as another:
                assert another is not connection
                assert await scalar(another, "select 1") == 1

        asyncio.run(main())


def test_a_cancelled_query_costs_no_session_and_no_slot(make: Make, postgresql: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(), max_size=1)

        async def sleep() -> None:
            async with pool.checkout() as connection:
                await connection.execute("select pg_sleep(60)")

        async def main() -> None:
            task = asyncio.ensure_future(sleep())
            await until(lambda: postgresql.states() == ["active"], "the query to run")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.checkout(timeout=20) as connection:
                assert await scalar(connection, "select 1") == 1
            assert len(postgresql.session_pids()) == 1

        asyncio.run(main())


def test_a_statement_is_cancelled_from_another_task(postgresql: Database) -> None:
    psycopg = pytest.importorskip("psycopg")
    where = f"host=127.0.0.1 port={postgresql.port} dbname={postgresql.name} user=postgres"
    with InProcessManager() as manager:
        pool = manager.apool("p", AsyncPsycopgRecipe(where), max_size=1)

        async def main() -> None:
            lease = await pool.checkout()
            sleeping = asyncio.ensure_future(lease.resource.execute("select pg_sleep(60)"))
            await until(lambda: postgresql.states() == ["active"], "the query to run")
            assert await lease.cancel()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await sleeping
            await lease.release()
            assert not await lease.cancel()

        asyncio.run(main())


# asyncio complains of transports whose loop was closed under them.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_without_a_word_leaves_no_session(
    make: Make, postgresql: Database
) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", make(), max_size=2)

        async def main() -> None:
            for lease in await take_all(pool, 2):
                await lease.release()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        first = postgresql.session_pids()
        loop.close()
        asyncio.run(main())
        wait_until(lambda: not first & postgresql.session_pids(), "the end of what the loop had")
        assert len(first) == 2
    gc.collect()
    wait_until(lambda: not postgresql.session_pids(), "the end of what the other loop had")


def test_no_secret_is_told(make: Make) -> None:
    recipe = make()
    assert MARK not in repr(recipe)
    assert MARK not in recipe.fingerprint()
    same = pickle.loads(pickle.dumps(recipe))
    assert same.fingerprint() == recipe.fingerprint()
    assert make(application_name="x").fingerprint() != recipe.fingerprint()


def test_a_refused_login_is_told_without_the_password() -> None:
    recipes = [
        AsyncpgRecipe(f"postgresql://nobody:{MARK}@127.0.0.1:1/{MARK}"),
        AsyncPsycopgRecipe(f"postgresql://nobody:{MARK}@127.0.0.1:1/x"),
    ]
    with InProcessManager() as manager:

        async def main() -> None:
            for number, recipe in enumerate(recipes):
                with pytest.raises(OpenFailed) as caught:
                    await manager.apool(f"p{number}", recipe).checkout()
                assert MARK not in str(caught.value)
                assert MARK not in str(caught.value.__cause__)

        asyncio.run(main())


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="dsn is a int"):
        AsyncpgRecipe(1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="login_timeout"):
        AsyncpgRecipe("postgresql://x", login_timeout=0)
    with pytest.raises(ConfigurationError, match="check_query"):
        AsyncpgRecipe("postgresql://x", check_query=" ")
    with pytest.raises(ConfigurationError, match="conninfo cannot be understood"):
        AsyncPsycopgRecipe("no such thing")

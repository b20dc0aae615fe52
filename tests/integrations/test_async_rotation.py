"""Asynchronous recipes: a password that changes, whom a session is for, and callables that may block or be awaited."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool import AsyncRecipe, ConfigurationError, InProcessManager, OpenFailed, Secret
from mppool.aioodbc import AioodbcRecipe
from mppool.asyncpg import AsyncpgRecipe
from mppool.psycopg import AsyncPsycopgRecipe
from tests.aio.things import until
from tests.integrations.postgresql import DRIVER, Database
from tests.integrations.test_async_recipes import scalar
from tests.integrations.test_rotation import Vault, conninfo, odbc_string, vault
from tests.secrecy import MARK
from tests.tds.double import TdsDouble

__all__ = ["vault"]

Make = Callable[[Vault, Any], AsyncRecipe[Any]]


def asyncpg_with_a_secret(vault: Vault, read: Any) -> AsyncRecipe[Any]:
    where = vault.database
    return AsyncpgRecipe(
        host="127.0.0.1", port=where.port, database=where.name, user=vault.user, password=read
    )


def asyncpg_with_a_url(vault: Vault, read: Any) -> AsyncRecipe[Any]:
    where = vault.database
    url = f"postgresql://{vault.user}@127.0.0.1:{where.port}/{where.name}"
    return AsyncpgRecipe(lambda: url, password=read)


def psycopg_with_a_secret(vault: Vault, read: Any) -> AsyncRecipe[Any]:
    return AsyncPsycopgRecipe(conninfo(vault), password=read, autocommit=True)


def aioodbc_with_a_secret(vault: Vault, read: Any) -> AsyncRecipe[Any]:
    return AioodbcRecipe(odbc_string(vault), secrets={"PWD": read}, autocommit=True)


RECIPES = [
    asyncpg_with_a_secret,
    asyncpg_with_a_url,
    psycopg_with_a_secret,
    aioodbc_with_a_secret,
]


@pytest.fixture(params=RECIPES, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


async def backend(connection: Any) -> int:
    return int(await scalar(connection, "select pg_backend_pid()"))


def test_a_changed_password_fails_no_checkout_and_ends_old_sessions_gently(
    make: Make, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.worker.opening.LOGIN_CHANGE_S", 0.2)
    recipe = make(vault, Secret(vault.read))
    key = recipe.fingerprint()

    async def main(manager: InProcessManager) -> None:
        pool = manager.apool("orders", recipe, max_size=4)
        async with pool.checkout(timeout=60) as old:
            old_pid = await backend(old)
            await asyncio.to_thread(vault.rotate)
            async with pool.checkout(timeout=60) as other:  # refused once, asked again
                new_pid = await backend(other)
            # It is in use, and goes on until it is released.
            assert await backend(old) == old_pid
        await until(
            lambda: vault.database.session_pids() == {new_pid}, "the end of the old session"
        )
        counters = (await pool.stats())["counters"]
        assert (counters["open_failed"], counters["opened"]) == (0, 2)
        await pool.aclose()

    with InProcessManager() as manager:
        asyncio.run(main(manager))
    assert recipe.fingerprint() == key


def test_a_coroutine_function_is_awaited_in_the_loop(make: Make, vault: Vault) -> None:
    asked: list[int] = []

    async def read() -> str:
        await asyncio.sleep(0)
        asked.append(threading.get_ident())
        return vault.password

    recipe = make(vault, read)

    async def main(manager: InProcessManager) -> None:
        pool = manager.apool("orders", recipe)
        for _ in range(2):
            async with pool.checkout(timeout=60) as connection:
                assert await scalar(connection, "select 42") in (42, "42")
        await pool.aclose()

    with InProcessManager() as manager:
        asyncio.run(main(manager))
    assert asked == [threading.get_ident()]  # where a session lies ready nobody is asked


def test_a_password_that_stays_wrong_fails_and_is_not_shown(make: Make, vault: Vault) -> None:
    asked: list[int] = []

    def wrong() -> str:
        asked.append(threading.get_ident())
        return f"{MARK}-wrong"

    async def main(manager: InProcessManager) -> None:
        with pytest.raises(OpenFailed) as failed:
            await manager.apool("orders", make(vault, Secret(wrong))).checkout(timeout=60)
        assert MARK not in str(failed.value)
        assert MARK not in str(failed.value.__cause__)

    with InProcessManager() as manager:
        asyncio.run(main(manager))
    # Once, and once more after the refusal; never by the thread of the loop, which it could block.
    assert len(asked) == 2
    assert threading.get_ident() not in asked


def read_password() -> str:
    """A function of a module, as a recipe that pickles needs."""
    return MARK


def test_a_recipe_pickles_without_its_password(make: Make, vault: Vault) -> None:
    if make is asyncpg_with_a_url:
        with pytest.raises(ConfigurationError, match="a lambda"):
            pickle.dumps(make(vault, read_password))
        return
    recipe = make(vault, Secret(read_password))
    pickled = pickle.dumps(recipe)
    assert MARK.encode() not in pickled
    assert pickle.loads(pickled).fingerprint() == recipe.fingerprint()


LABEL = f"shop/orders/{os.getpid()}"


def name_at_postgresql(recipe: AsyncRecipe[Any]) -> str:
    async def main(manager: InProcessManager) -> str:
        async with manager.apool("orders", recipe).checkout(timeout=60) as connection:
            name: str = await scalar(connection, "show application_name")
        return name

    with InProcessManager("shop") as manager:
        return asyncio.run(main(manager))


@pytest.mark.parametrize("kind", [AsyncpgRecipe, AsyncPsycopgRecipe])
def test_postgresql_shows_application_pool_and_process(
    kind: Any, postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAPPNAME", raising=False)
    where = f"postgresql://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}"
    assert name_at_postgresql(kind(where)) == LABEL
    assert name_at_postgresql(kind(where, label_sessions=False)) == ""
    assert name_at_postgresql(kind(where, application_name="mine")) == "mine"
    assert name_at_postgresql(kind(f"{where}?application_name=mine")) == "mine"


def test_sql_server_shows_application_pool_and_process(tds: TdsDouble) -> None:
    def names(recipe: AsyncRecipe[Any]) -> list[str]:
        async def main(manager: InProcessManager) -> list[str]:
            async with manager.apool("orders", recipe).checkout(timeout=60):
                return [session.application for session in tds.open_sessions()]

        with InProcessManager("shop") as manager:
            found = asyncio.run(main(manager))
        tds.wait_for_open(0)
        return found

    string = tds.connection_string("UID=sa;PWD=any")
    assert names(AioodbcRecipe(string)) == [LABEL]
    assert names(AioodbcRecipe(f"{string};APP=mine;")) == ["mine"]
    assert LABEL not in names(AioodbcRecipe(string, label_sessions=False))


@pytest.mark.parametrize(
    "refused",
    [
        lambda: AsyncpgRecipe(7),  # type: ignore[arg-type]
        lambda: AsyncPsycopgRecipe(7),  # type: ignore[arg-type]
        lambda: AioodbcRecipe(7),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_text_and_no_callable_is_refused(refused: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match="is a int; give a str"):
        refused()


def test_a_driver_is_named_in_the_connection_string() -> None:
    with pytest.raises(ConfigurationError, match="Driver"):
        AioodbcRecipe("Server=127.0.0.1")
    assert "AioodbcRecipe" in repr(AioodbcRecipe(f"Driver={DRIVER};Server=127.0.0.1"))

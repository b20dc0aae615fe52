"""A pool that is handed to another process: in a forked child it is the declaration that the child has inherited."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationMismatch, Pool, PoolManager
from mppool.azure import StaticToken
from mppool.recipe import Opening, Recipe


class Whoever:
    """A credential of which only a token can tell the identity."""

    def __init__(self, name: str = "alice") -> None:
        self.name = name

    def get_token(self, *scopes: str, **options: Any) -> Any:
        return StaticToken(f"token of {self.name}").get_token(*scopes)


class Sessions(Recipe[list[str]]):
    token_scope = "https://database.windows.net/.default"

    def __init__(self, credential: Any) -> None:
        self.credential = credential

    def open(self, opening: Opening) -> list[str]:
        return [opening.token.token_struct[4:].decode("utf-16-le")]


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    made = PoolManager("pickled", runtime_dir=runtime_dir)
    yield made
    made.shutdown()


def use(pool: Pool[list[str]]) -> str:
    with pool.checkout(timeout=20) as session:
        return session[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_in_the_tasks_of_an_executor(manager: PoolManager, method: str) -> None:
    pool = manager.pool("p", Sessions(Whoever()), max_size=4)
    assert use(pool) == "token of alice"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert set(executor.map(use, [pool] * 6)) == {"token of alice"}


def test_in_its_own_process_it_is_the_same_pool(manager: PoolManager) -> None:
    pool = manager.pool("p", Sessions(Whoever()), max_size=4)
    again = pickle.loads(pickle.dumps(pool))
    again = pickle.loads(pickle.dumps(again))
    assert again._local is pool._local


def test_a_declaration_with_another_credential_is_refused_all_the_same(
    manager: PoolManager, runtime_dir: Path
) -> None:
    pool = manager.pool("p", Sessions(Whoever()), max_size=4)
    pickled = pickle.dumps(pool)
    pool._local.mark = "of another process"
    with pytest.raises(ConfigurationMismatch, match="credentials"):
        pickle.loads(pickled)

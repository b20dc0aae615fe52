"""Mistakes that are easily made: each is said clearly, with the way out."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, PoolError, PoolManager, TooManyWaiting
from mppool.azure import BlobServicePool
from tests.helpers import wait_until


class Credential:
    """Any token credential."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        raise AssertionError("nobody wants a token here")


def test_a_credential_for_a_pool_without_tokens() -> None:
    pool = InProcessManager().pool("p", list)
    with pytest.raises(ConfigurationError, match="names a token_scope"):
        pool.checkout(credential=Credential())
    with pytest.raises(ConfigurationError, match=r"belongs to the recipe .* or to a checkout"):
        InProcessManager().pool("p", list, credential=Credential())


@pytest.mark.parametrize("manager", ["shop", None, 1, PoolManager], ids=repr)
def test_a_pool_of_clients_wants_a_manager(manager: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"give a manager, for instance BlobServicePool\("):
        BlobServicePool(manager)


WITHOUT_AZURE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("azure", "msal", "aiohttp"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from mppool import ConfigurationError, InProcessManager
from mppool.azure import BlobServicePool, StaticToken, blob_service, get_token_info
manager = InProcessManager()
class Credential:
    def get_token(self, *scopes, **options): return None
SAS = "sv=2020&sig=abc"
for attempt in (
    lambda: manager.credential(Credential()),
    lambda: manager.async_credential(Credential()),
    lambda: StaticToken("abc").get_token("scope"),
    lambda: StaticToken("abc").get_token_info("scope"),
    lambda: BlobServicePool(manager).client("a2V5", "account"),
    lambda: BlobServicePool(manager).client(SAS, "account"),
    lambda: BlobServicePool(manager).client(Credential(), "account"),
    lambda: BlobServicePool(manager).client_from_connection_string("AccountName=a;AccountKey=b"),
    lambda: blob_service("a2V5", "account"),
):
    try:
        attempt()
    except ConfigurationError as error:
        assert "pip install 'mppool[azure]'" in str(error), error
    else:
        raise AssertionError("nothing was raised")
print("all said so")
"""


def test_azure_without_its_extra(runtime_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AZURE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "all said so\n", done.stderr


def test_sqlalchemy_without_its_extra() -> None:
    script = (
        "import sys\nsys.modules['sqlalchemy'] = None\n"
        "try:\n    import mppool.integrations.sqlalchemy\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install 'mppool[sqlalchemy]'" in done.stdout, done.stderr


def test_what_would_be_opened_is_not_what_opens_it() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for recipe, what in (
            ("Driver=SQLite3;PWD=geheim", "the recipe is text"),
            (connection, "an open connection"),
        ):
            with pytest.raises(ConfigurationError, match=what) as refused:
                InProcessManager().pool("p", recipe)
            assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("name", ["execute", "cursor", "commit", "fetchall", "close", "get"])
def test_what_is_looked_for_at_the_lease_is_the_resources(name: str) -> None:
    lease = InProcessManager().pool("p", dict).checkout()
    with pytest.raises(AttributeError, match=f"use `with pool.checkout|lease.resource.{name}"):
        getattr(lease, name)
    assert not hasattr(lease, name)
    lease.release()


def test_a_lambda_that_is_pickled(runtime_dir: Path) -> None:
    def local(resource: Any) -> None:
        """Cannot be found by its name."""

    for recipe, hooks in ((lambda: [1], {}), (list, {"reset": local})):
        pool = PoolManager("test").pool(f"p{len(hooks)}", recipe, **hooks)
        with pytest.raises(ConfigurationError, match="at the top of a module"):
            pickle.dumps(pool)
    assert pickle.loads(pickle.dumps(PoolManager("test").pool("q", list))).name == "q"


def test_a_checkout_that_waits_inside_an_event_loop_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = InProcessManager().pool("p", list, max_size=1)

    async def main() -> None:
        for _ in range(2):
            lease = pool.checkout()
            threading.Timer(0.1, lease.release).start()
            pool.checkout(timeout=20).release()

    async def patient() -> None:
        lease = await pool.acheckout()
        threading.Timer(0.1, lease.release).start()
        async with pool.acheckout(timeout=20):
            pass

    with caplog.at_level(logging.WARNING, "mppool"):
        asyncio.run(patient())
        pool.checkout(timeout=20).release()
        assert not caplog.records
        asyncio.run(main())
    assert len([record for record in caplog.records if "acheckout" in record.message]) == 1


def test_the_help_of_resize_says_what_is_not_given() -> None:
    pool = InProcessManager().pool("p", list)
    assert str(inspect.signature(pool.resize)).count("= unchanged") == 2
    assert "the pool's timeout" in str(inspect.signature(pool.checkout))


def test_another_credential_of_the_same_name_is_the_same(manager: PoolManager) -> None:
    from mppool import Recipe as Base

    class Opens(Base[list[int]]):
        token_scope = "https://database.windows.net/.default"

        def __init__(self, credential: Any) -> None:
            self.credential = credential

        def open(self, opening: Any) -> list[int]:
            return []

    first = manager.credential(Credential(), identity="sales")
    again = manager.credential(Credential(), identity="sales")
    other = manager.credential(Credential(), identity="stock")
    pool = manager.pool("p", Opens(first))
    assert manager.pool("p", Opens(again))._local is pool._local
    with pytest.raises(ConfigurationError, match="different credentials"):
        manager.pool("p", Opens(other))


def test_where_nobody_may_wait_it_is_said_so() -> None:
    pool = InProcessManager().pool("p", list, max_size=1, max_waiting=0)
    with (
        pool.checkout(),
        pytest.raises(TooManyWaiting, match="max_waiting=0 lets nobody wait") as raised,
    ):
        pool.checkout(timeout=5)
    assert "0 checkouts" not in str(raised.value)


def test_a_timeout_says_who_holds(manager: PoolManager, fork: Any) -> None:
    from mppool.worker.member import name_process

    pool = manager.pool("p", list, max_size=3)
    ready: list[Any] = []

    def hold() -> None:
        name_process("the report")
        ready.extend(pool.checkout(timeout=10) for _ in range(2))
        threading.Event().wait(60)

    fork(hold)
    wait_until(lambda: pool.stats()["size"] == 2, "the other one to hold two")
    theirs = r"the report \(pid \d+\) has 2 \(the oldest for \d+\.\d s\)"
    mine = r"1 of them are lent in this process, the longest for \d+\.\d s"

    def is_said() -> bool:
        with pytest.raises(PoolError) as raised:
            pool.checkout(timeout=0.1)
        assert re.search(mine, str(raised.value))
        return re.search(theirs, str(raised.value)) is not None

    with pool.checkout(timeout=10):
        # What the books say has a few milliseconds to arrive; on a busy machine it may come too late.
        wait_until(is_said, "it to be said who holds the others")


def test_help_shows_what_a_manager_takes() -> None:
    parameters = inspect.signature(PoolManager).parameters
    assert list(parameters)[:2] == ["name", "runtime_dir"]

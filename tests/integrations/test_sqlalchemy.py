"""shared_pool under real engines: one cap for all processes, and SQLAlchemy's own meaning of everything else."""

from __future__ import annotations

import base64
import gc
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from mppool import ConfigurationError, ConfigurationMismatch, InProcessManager, PoolManager
from mppool.azure import token_struct
from mppool.integrations.sqlalchemy import opening, shared_pool
from tests.helpers import Fork, wait_until
from tests.integrations.postgresql import Database, PostgresqlServer
from tests.secrecy import MARK, WATCH

Engine = sqlalchemy.Engine


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    made = PoolManager("test")
    yield made
    made.shutdown()


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop.db'}"


def url_of(database: Database) -> str:
    return f"postgresql+psycopg://postgres:{MARK}@127.0.0.1:{database.port}/{database.name}"


def backend(connection: sqlalchemy.Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def one(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar()


# --- one cap ----------------------------------------------------------------------------------------------


def test_the_cap_is_that_of_all_processes(manager: PoolManager, postgresql: Database) -> None:
    engine = create_engine(
        url_of(postgresql), poolclass=shared_pool(manager, "shop"), pool_size=2, max_overflow=0
    )

    def work() -> int:
        most = 0
        for _ in range(15):
            with engine.connect() as connection:
                connection.execute(text("SELECT pg_sleep(0.002)"))
                most = max(most, postgresql_sessions(connection))
        return most

    one(engine)  # no dispose() is needed before or after a fork
    children = [Fork(work) for _ in range(3)]
    assert max(child.result() for child in children) <= 2
    assert one(engine) == 1
    engine.dispose()


def postgresql_sessions(connection: sqlalchemy.Connection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(connection.execute(text(query)).scalar_one())


def test_pool_timeout_is_sqlalchemys_timeout_error(sqlite: str) -> None:
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=1, max_overflow=1,
        pool_timeout=0.5,
    )  # fmt: skip
    with engine.connect(), engine.connect(), pytest.raises(PoolTimeout, match="size 1 overflow 1"):
        engine.connect()


def test_what_is_above_pool_size_is_closed_when_it_is_given_back(sqlite: str) -> None:
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=1, max_overflow=2
    )
    connections = [engine.connect() for _ in range(3)]
    assert "Current Overflow: 2 Current Checked out connections: 3" in engine.pool.status()
    for connection in connections:
        connection.close()
    assert "Connections in pool: 1 Current Overflow: 0" in engine.pool.status()


@pytest.mark.parametrize(("size", "overflow"), [(0, 10), (3, -1)])
def test_there_may_be_no_cap(sqlite: str, size: int, overflow: int) -> None:
    manager = InProcessManager()
    engine = create_engine(
        sqlite, poolclass=shared_pool(manager, "p"), pool_size=size, max_overflow=overflow
    )
    connections = [engine.connect() for _ in range(25)]
    assert manager.stats()["pools"]["p"]["max_size"] is None
    for connection in connections:
        connection.close()
    assert engine.pool.checkedin() == (25 if size == 0 else 3)


def test_what_the_creator_of_any_release_of_2_0_connects_with_is_known() -> None:
    """Its variable is called `cargs` in early releases: every process took its engines for something else."""
    cargs, cargs_tup, cparams = ["shop.db"], ("shop.db",), {"password": "verysecret"}

    def older() -> object:
        return cargs, cparams

    def newer() -> object:
        return cargs_tup, cparams

    for creator in (older, newer):
        assert opening.arguments_of(creator) == (("shop.db",), {"password": "verysecret"})
        assert opening.secrets_of(creator) == ["verysecret"]


def test_engines_of_one_name_share_and_must_open_the_same(sqlite: str) -> None:
    manager = InProcessManager()
    first, second = (
        create_engine(
            sqlite,
            poolclass=shared_pool(manager, "p"),
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.5,
        )
        for _ in range(2)
    )
    with first.connect(), pytest.raises(PoolTimeout):
        second.connect()
    assert one(second) == 1
    with pytest.raises(ConfigurationMismatch):
        create_engine(
            f"{sqlite}2", poolclass=shared_pool(manager, "p"), pool_size=1, max_overflow=0
        )
    with pytest.raises(ConfigurationMismatch, match="max_size"):
        create_engine(sqlite, poolclass=shared_pool(manager, "p"), pool_size=2, max_overflow=0)


def test_engines_share_the_cap_and_not_the_connections_for_each_prepares_its_own(
    manager: PoolManager, postgresql: Database
) -> None:
    pool = shared_pool(manager, "p")
    engines = [
        create_engine(
            url_of(postgresql),
            poolclass=pool,
            pool_size=1,
            max_overflow=0,
        )
        for n in range(2)
    ]
    for n, engine in enumerate(engines):
        event.listen(engine, "connect", lambda _, record, n=n: record.info.update(engine=n))
    pids = set()
    for n in (0, 1, 0):
        with engines[n].connect() as connection:
            pids.add(backend(connection))
            assert postgresql_sessions(connection) == 1
            assert connection.info["engine"] == n
            assert engines[n].dialect.server_version_info >= (9,)  # type: ignore[attr-defined]
    assert len(pids) == 3
    engines[0].dispose()


def test_creators_that_differ_in_anything_are_two(sqlite: str) -> None:
    import sqlite3

    class Tenant:
        """Something opaque."""

    def engine(manager: Any, creator: Any) -> Engine:
        return create_engine("sqlite://", creator=creator, poolclass=shared_pool(manager, "p"))

    def creator_of(path: str, tenant: object = None) -> Any:
        return lambda: sqlite3.connect(path if tenant is None else "", check_same_thread=False)

    path = sqlite.removeprefix("sqlite:///")
    manager = InProcessManager()
    for _ in range(2):
        assert one(engine(manager, creator_of(path))) == 1
    for other in (
        creator_of(f"{path}2"),
        creator_of(path, Tenant()),
        partial(sqlite3.connect, path),
    ):
        with pytest.raises(ConfigurationMismatch):
            engine(manager, other)


@pytest.mark.parametrize("in_caller", [True, False])
def test_hooks_see_the_callers_context_and_where_asked_to_its_thread(
    sqlite: str, in_caller: bool
) -> None:
    where: ContextVar[str] = ContextVar("where", default="")
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p", open_in_caller=in_caller)
    )
    seen: list[tuple[str, bool]] = []
    me = threading.get_ident()
    event.listen(
        engine, "connect", lambda *_: seen.append((where.get(), threading.get_ident() == me))
    )
    where.set("here")
    one(engine)
    assert seen == [("here", in_caller)]


def test_further_options_of_the_pool(sqlite: str) -> None:
    manager = InProcessManager()
    engine = create_engine(sqlite, poolclass=shared_pool(manager, "p", keep=False, max_waiting=0))
    one(engine)
    assert engine.pool.checkedin() == 0
    for option in ("max_size", "min_size", "timeout"):
        with pytest.raises(ConfigurationError, match="create_engine"):
            shared_pool(manager, "p", **{option: 1})
    with pytest.raises(ConfigurationError, match="name"):
        shared_pool(manager, "a b")


# --- what SQLAlchemy says ---------------------------------------------------------------------------------


def test_an_open_transaction_is_rolled_back_and_reset_events_fire(sqlite: str) -> None:
    engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=1)
    seen: list[str] = []
    for name in ("connect", "checkout", "checkin", "reset", "close"):
        event.listen(engine, name, lambda *_, name=name: seen.append(name))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 0
    engine.dispose()
    assert seen == ["connect", *["checkout", "reset", "checkin"] * 3, "close"]


def test_info_lasts_as_long_as_the_connection(sqlite: str) -> None:
    engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=1)
    with engine.connect() as connection:
        connection.info["mine"] = 1
    with engine.connect() as connection:
        assert connection.info["mine"] == 1
        connection.invalidate()
    with engine.connect() as connection:
        assert "mine" not in connection.info


def test_recycle_replaces_what_is_too_old(sqlite: str) -> None:
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=1, pool_recycle=60
    )
    opened: list[Any] = []
    event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    with engine.connect() as connection:
        record: Any = connection.connection._connection_record  # type: ignore[attr-defined]
    assert (one(engine), len(opened)) == (1, 1)
    record.starttime -= 61
    assert (one(engine), len(opened)) == (1, 2)


def test_a_detached_connection_is_its_users(sqlite: str) -> None:
    engine = create_engine(
        sqlite,
        poolclass=shared_pool(InProcessManager(), "p"),
        pool_size=1,
        max_overflow=0,
        pool_timeout=5,
    )
    mine = engine.connect()
    mine.detach()
    with engine.connect() as other:
        assert other.connection.dbapi_connection is not mine.connection.dbapi_connection
    engine.dispose()
    assert mine.execute(text("SELECT 1")).scalar() == 1
    mine.close()


def test_dispose_closes_what_is_idle_here_and_later_what_was_in_use(sqlite: str) -> None:
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=2, max_overflow=0
    )
    closed: list[Any] = []
    event.listen(engine, "close", lambda connection, _: closed.append(connection))
    out = engine.connect()
    raw = out.connection.dbapi_connection
    one(engine)
    engine.dispose()
    assert len(closed) == 1
    assert out.execute(text("SELECT 1")).scalar() == 1
    out.close()
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is not raw
    assert closed[1] is raw


def test_dispose_without_closing_goes_on_with_the_same_connections(sqlite: str) -> None:
    engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"))
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
    engine.dispose(close=False)
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is raw


def test_a_connection_that_is_lost_comes_back(sqlite: str) -> None:
    engine = create_engine(
        sqlite,
        poolclass=shared_pool(InProcessManager(), "p"),
        pool_size=1,
        max_overflow=0,
        pool_timeout=5,
    )
    engine.raw_connection()  # dropped
    gc.collect()
    assert one(engine) == 1


def test_an_interrupt_between_checkout_and_use_costs_no_slot(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(
        sqlite,
        poolclass=shared_pool(InProcessManager(), "p"),
        pool_size=1,
        max_overflow=0,
        pool_timeout=5,
    )

    class Interrupt(BaseException):
        pass

    def struck(*_: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy.pool.base._ConnectionFairy, "__init__", struck)
        with pytest.raises(Interrupt):
            engine.raw_connection()
    gc.collect()
    assert one(engine) == 1


def test_echo_pool_logs_as_ever(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sqlalchemy.pool"):
        engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"))
        one(engine)
        engine.dispose()
    for words in (
        "Created new connection",
        "checked out from pool",
        "being returned to pool",
        "disposed",
    ):
        assert words in caplog.text


def test_a_failing_connect_is_the_drivers_error(tmp_path: Path) -> None:
    engine = create_engine(
        f"sqlite:///{tmp_path}/missing/x.db", poolclass=shared_pool(InProcessManager(), "p")
    )
    for _ in range(3):  # the second comes while the pool does not try again yet
        with pytest.raises(OperationalError, match="unable to open database file"):
            engine.connect()


def test_a_password_is_in_no_text_that_travels() -> None:
    manager = InProcessManager()
    engine = create_engine(
        f"postgresql+psycopg://shop:{MARK}@127.0.0.1:1/{MARK}", poolclass=shared_pool(manager, "p")
    )
    for _ in range(2):
        with pytest.raises(OperationalError):
            engine.connect()
    WATCH.see("statistics", json.dumps(manager.stats()))
    WATCH.see_objects()


def test_a_name_is_not_a_manager() -> None:
    with pytest.raises(ConfigurationError, match="give a manager: shared_pool"):
        shared_pool("shop", "db")  # type: ignore[arg-type]


def test_async_engines_refuse_it() -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    with pytest.raises(sqlalchemy.exc.ArgumentError, match="asyncio"):
        create_async_engine(
            "postgresql+psycopg://localhost/x", poolclass=shared_pool(InProcessManager(), "p")
        )
    # Early releases of SQLAlchemy 2.0 do not look themselves.
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="an asyncio engine"):
        shared_pool(InProcessManager(), "p")(lambda: None, dialect=SimpleNamespace(is_async=True))


# --- forks ------------------------------------------------------------------------------------------------


def test_a_child_never_speaks_on_what_its_parent_had_in_use(
    manager: PoolManager, postgresql: Database
) -> None:
    engine = create_engine(url_of(postgresql), poolclass=shared_pool(manager, "p"), pool_size=4)
    connection = engine.connect()
    mine = backend(connection)
    connection.commit()
    session = engine.connect()
    session.execute(text("CREATE TEMPORARY TABLE t (x INTEGER)"))
    session.execute(text("INSERT INTO t VALUES (1)"))

    def in_child() -> int:
        with pytest.raises(SQLAlchemyError):  # in the middle of a transaction
            session.execute(text("SELECT 1"))
        with pytest.raises(SQLAlchemyError):
            connection.execute(text("SELECT 1"))
        session.close()
        connection.close()
        gc.collect()
        with engine.connect() as own:
            return backend(own)

    assert Fork(in_child).result() != mine
    # Neither has the child rolled back, nor has it ended the session.
    assert session.execute(text("SELECT x FROM t")).scalar() == 1
    assert backend(connection) == mine
    session.close()
    connection.close()
    engine.dispose()


# --- disconnects ------------------------------------------------------------------------------------------


def test_pre_ping_replaces_what_has_died_and_all_as_old_in_all_processes(
    manager: PoolManager, postgresql: Database
) -> None:
    engine = create_engine(
        url_of(postgresql), poolclass=shared_pool(manager, "p"), pool_size=4, pool_pre_ping=True
    )
    ready, go = [os.pipe() for _ in range(2)]

    def colleague() -> int:
        with engine.connect() as connection:
            before = backend(connection)
        os.write(ready[1], b".")
        os.read(go[0], 1)
        wait_until(lambda: engine.pool.checkedin() == 0, "it to be taken away")  # type: ignore[attr-defined]
        return before

    child = Fork(colleague)
    os.read(ready[0], 1)
    connections = [engine.connect() for _ in range(2)]
    before = {backend(connection) for connection in connections}
    for connection in connections:
        connection.close()
    postgresql.end_sessions()
    with engine.connect() as connection:
        assert backend(connection) not in before
    os.write(go[1], b".")
    child.result()
    wait_until(lambda: manager.stats()["pools"]["p"]["size"] <= 1, "the others to go")
    engine.dispose()


def test_a_disconnect_in_use_is_one_error_and_a_generation(
    manager: PoolManager, postgresql: Database
) -> None:
    engine = create_engine(url_of(postgresql), poolclass=shared_pool(manager, "p"), pool_size=3)
    connections = [engine.connect() for _ in range(3)]
    for connection in connections[1:]:
        connection.close()
    connections[0].execute(text("SELECT 1"))
    postgresql.end_sessions()
    with pytest.raises(OperationalError) as caught:
        connections[0].execute(text("SELECT 1"))
    assert caught.value.connection_invalidated
    connections[0].close()
    for _ in range(3):  # no further error, without any ping
        assert one(engine) == 1
    engine.dispose()


def test_a_restart_under_load_costs_one_error_for_each_statement_in_flight(
    manager: PoolManager, postgresql_server: Any
) -> None:
    server = PostgresqlServer()
    server.start()
    try:
        port = server.port
        engine = create_engine(
            f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres",
            poolclass=shared_pool(manager, "p"), pool_size=4, max_overflow=0,
        )  # fmt: skip
        ready, go = [os.pipe() for _ in range(2)]

        def worker() -> dict[str, int]:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            lost = 0
            os.write(ready[1], b".")
            with engine.connect() as connection:
                try:
                    connection.execute(text("SELECT pg_sleep(30)"))
                except OperationalError as error:
                    lost += error.connection_invalidated
            os.read(go[0], 1)
            later = 0
            for _ in range(20):
                try:
                    one(engine)
                except OperationalError:
                    later += 1
            return {"lost": lost, "later": later}

        workers = [Fork(worker) for _ in range(4)]
        for _ in workers:
            os.read(ready[0], 1)
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%'"
        wait_until(lambda: server.query(sleeping)[0][0] == 4, "all workers to be in a statement")
        server.halt()
        server.start(port)
        os.write(go[1], b"....")
        assert [one.result() for one in workers] == [{"lost": 1, "later": 0}] * 4
        engine.dispose()
    finally:
        server.stop()


# --- tokens in do_connect ---------------------------------------------------------------------------------


def jwt(who: str, turn: int = 0) -> str:
    claims = json.dumps({"tid": "t", "oid": who, "turn": turn, "mark": MARK}).encode()
    return f"h.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.s"


class TokenDriver:
    """What an engine's do_connect hook hands to a driver that takes attrs_before."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.current = ""

    def hook(self, dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        keywords["attrs_before"] = {1256: token_struct(self.current)}
        self.tokens.append(self.current)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> TokenDriver:
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as Dialect

    original = Dialect.connect

    def connect(self: Any, *arguments: Any, attrs_before: Any = None, **keywords: Any) -> Any:
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Dialect, "connect", connect)
    return TokenDriver()


def test_a_newer_token_of_the_same_identity_goes_on(sqlite: str, tokens: TokenDriver) -> None:
    engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=4)
    event.listen(engine, "do_connect", tokens.hook)
    tokens.current = jwt("alice")
    with engine.connect():
        tokens.current = jwt("alice", 1)
        assert one(engine) == 1
    assert len(tokens.tokens) == 2


@pytest.mark.parametrize("other", ["bob", "opaque"])
def test_tokens_of_two_identities_in_one_pool_are_refused_loudly(
    sqlite: str, tokens: TokenDriver, other: str
) -> None:
    manager = InProcessManager()
    engine = create_engine(sqlite, poolclass=shared_pool(manager, "p"), pool_size=4)
    event.listen(engine, "do_connect", tokens.hook)
    tokens.current = jwt("alice")
    with engine.connect():
        tokens.current = jwt("bob") if other == "bob" else f"{MARK} of somebody"
        with pytest.raises(ConfigurationError, match="several identities"):
            engine.connect()
        tokens.current = jwt("alice")
        wait_until(lambda: manager.stats()["pools"]["p"]["breaker"] != "open", "the next attempt")
    # With the first one's connections gone the pool is the second one's.
    engine.dispose()
    tokens.current = jwt("bob")
    time.sleep(0)
    assert wait_until(lambda: _or_none(engine), "the pool to serve the other one") == 1


def _or_none(engine: Engine) -> Any:
    try:
        return one(engine)
    except (ConfigurationError, OperationalError):
        return None


def test_an_engine_for_each_identity_works_under_one_cap(sqlite: str, tokens: TokenDriver) -> None:
    pool = shared_pool(InProcessManager(), "p")
    engines = {
        name: create_engine(sqlite, poolclass=pool, pool_size=2) for name in ("alice", "bob")
    }
    whose: dict[int, str] = {}
    for name, engine in engines.items():
        event.listen(engine, "do_connect", tokens.hook)
        tokens.current = jwt(name)
        with engine.connect() as connection:
            whose[id(connection.connection.dbapi_connection)] = name
    for name, engine in engines.items():
        with engine.connect() as connection:
            assert whose[id(connection.connection.dbapi_connection)] == name
    assert len(tokens.tokens) == 2


def test_a_malformed_token_never_reaches_a_driver(sqlite: str, tokens: TokenDriver) -> None:
    engine = create_engine(sqlite, poolclass=shared_pool(InProcessManager(), "p"))

    def hook(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        keywords["attrs_before"] = {1256: b"\xff\xff"}

    event.listen(engine, "do_connect", hook)
    with pytest.raises(ConfigurationError, match="1256"):
        engine.connect()


def test_threads_share_an_engine(sqlite: str) -> None:
    engine = create_engine(
        sqlite, poolclass=shared_pool(InProcessManager(), "p"), pool_size=2, max_overflow=1
    )
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                one(engine)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_engines_of_one_pool_may_be_in_different_lanes_and_share_a_budget() -> None:
    manager = InProcessManager("lanes")
    budget = manager.budget("server", 3)
    options: dict[str, Any] = {"lanes": {"web": 1}, "budget": budget}
    arguments: dict[str, Any] = {"connect_args": {"check_same_thread": False}, "pool_size": 2}
    web = create_engine(
        "sqlite://", poolclass=shared_pool(manager, "db", lane="web", **options), **arguments
    )
    jobs = create_engine("sqlite://", poolclass=shared_pool(manager, "db", **options), **arguments)
    with web.connect(), jobs.connect(), jobs.connect():
        lanes = manager.stats()["pools"]["db"]["lanes"]
        assert lanes is not None
        assert {name: lane["in_use"] for name, lane in lanes.items()} == {"web": 1, "": 2}
        assert budget.stats()["size"] == 3
    manager.shutdown()

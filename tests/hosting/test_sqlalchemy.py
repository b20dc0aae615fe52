"""SQLAlchemy's engine over hosts: `shared_pool(..., placement="host")`."""

from __future__ import annotations

import datetime as dt
import os
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from mppool import InProcessManager, PoolManager
from mppool.errors import ConfigurationError, StaleLease
from mppool.integrations.sqlalchemy import shared_async_pool, shared_pool
from tests.helpers import PATIENCE, Fork, is_alive, wait_until
from tests.integrations.postgresql import Database
from tests.integrations.test_sqlalchemy import url_of


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(30), unique=True)
    price: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2))
    at: Mapped[dt.datetime]
    details: Mapped[Any] = mapped_column(sa.JSON)


def engine_on(manager: PoolManager, url: str, **options: Any) -> sa.Engine:
    own = {
        name: options.pop(name) for name in ("configure", "values", "max_quiet") if name in options
    }
    kind = shared_pool(manager, "shop", placement="host", **own)
    return create_engine(url, poolclass=kind, pool_timeout=PATIENCE, **options)


@pytest.fixture(params=["sqlite", "psycopg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data.db'}"
    database: Database = request.getfixturevalue("postgresql")
    return url_of(database)


def test_the_orm_does_what_it_always_does(manager: PoolManager, url: str) -> None:
    engine = engine_on(manager, url, values="pickle")
    Base.metadata.create_all(engine)
    at = dt.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001
    with Session(engine) as session:
        for number in range(100):
            name = f"order {number}"
            session.add(
                Order(id=number, name=name, price=Decimal("12.50"), at=at, details={"n": [number]})
            )
        session.commit()
    with Session(engine) as session:
        found = session.scalars(sa.select(Order).order_by(Order.id)).all()
        assert len(found) == 100
        last = found[-1]
        assert (last.name, last.price, last.at) == ("order 99", Decimal("12.50"), at)
        assert last.details == {"n": [99]}
        last.name = "changed"
        session.flush()
        session.rollback()
    with Session(engine) as session:
        assert session.get_one(Order, 99).name == "order 99"
        session.add(Order(id=100, name="order 99", price=Decimal(1), at=at, details=None))
        with pytest.raises(IntegrityError):
            session.commit()
    # What a worker does not see: it is a host that has opened all of it.
    figures = manager.stats()["pools"]["shop"]
    assert figures["placement"] == "host"
    assert figures["size"] == 1
    engine.dispose()


def test_processes_share_the_cap_and_a_checkout_without_one_waits(
    manager: PoolManager, url: str
) -> None:
    engine = engine_on(manager, url, pool_size=2, max_overflow=0)

    def works() -> int:
        total = 0
        for _ in range(10):
            with engine.connect() as connection:
                total += connection.execute(text("select 7")).scalar_one()
        return total

    assert works() == 70
    children = [Fork(works) for _ in range(4)]
    assert [child.result() for child in children] == [70] * 4
    assert manager.stats()["pools"]["shop"]["counters"]["opened"] <= 2


def test_pool_timeout_is_sqlalchemys(manager: PoolManager, tmp_path: Path) -> None:
    kind = shared_pool(manager, "shop", placement="host")
    url = f"sqlite:///{tmp_path / 'data.db'}"
    patient = create_engine(url, poolclass=kind, pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    with patient.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
        assert "checked out connections: 1" in patient.pool.status().lower()
        patient.pool._timeout = 0.1  # type: ignore[attr-defined]
        with pytest.raises(PoolTimeout):
            patient.connect()
    assert "checked out connections: 0" in patient.pool.status().lower()


def test_an_open_transaction_is_rolled_back(manager: PoolManager, url: str) -> None:
    engine = engine_on(manager, url, pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.execute(text("create table t (id int)"))
    with engine.connect() as connection:
        connection.execute(text("insert into t values (1)"))
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from t")).scalar_one() == 0


def set_seven(connection: Any) -> None:
    """A configure hook: functions do not travel with a statement, but by their names."""
    connection.create_function("seven", 0, lambda: 7)


def test_hooks_prepare_each_connection_once_and_configure_runs_in_the_host(
    manager: PoolManager, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'data.db'}"
    engine = engine_on(manager, url, pool_size=1, max_overflow=0, configure=set_seven)
    seen: list[str] = []

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        seen.append("connect")
        cursor = connection.cursor()
        cursor.execute("PRAGMA cache_size=-1234")
        cursor.close()

    for _ in range(3):
        with engine.connect() as connection:
            assert connection.execute(text("select seven()")).scalar_one() == 7
            # The dialect's own function, which it adds to each connection.
            assert connection.execute(text("select 'abc' regexp 'b'")).scalar_one() == 1
            assert connection.execute(text("PRAGMA cache_size")).scalar_one() == -1234
    assert seen == ["connect"]


def host_of(connection: sa.Connection) -> int:
    """The pid."""
    driver: Any = connection.connection.driver_connection
    found: int = driver._hold.stream.host_pid
    return found


def kill(host: int) -> None:
    os.kill(host, signal.SIGKILL)
    wait_until(lambda: not is_alive(host), "the end of the host")


def test_a_host_that_dies_is_a_disconnect_of_the_driver(manager: PoolManager, url: str) -> None:
    engine = engine_on(manager, url, pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
        kill(host_of(connection))
        with pytest.raises(OperationalError, match="is gone") as caught:
            connection.execute(text("select 1"))
        assert caught.value.connection_invalidated
        assert isinstance(caught.value.orig, StaleLease)
        assert connection.invalidated
        connection.rollback()
        # SQLAlchemy's own: the same Connection goes on with another connection.
        assert connection.execute(text("select 2")).scalar_one() == 2
        kill(host_of(connection))
        with pytest.raises(OperationalError) as at_the_commit:
            connection.commit()
        assert at_the_commit.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.execute(text("select 3")).scalar_one() == 3
    wait_until(lambda: not manager.stats()["pools"]["shop"]["in_use"], "nothing to be in use")


def test_what_tries_again_after_a_disconnect_goes_on_over_hosts(
    manager: PoolManager, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'data.db'}"
    engine = engine_on(manager, url, pool_size=1, max_overflow=0, pool_pre_ping=True)
    Base.metadata.create_all(engine)
    kills = [True, False]

    def added() -> None:
        with Session(engine) as session, session.begin():
            at = dt.datetime(2026, 1, 2)  # noqa: DTZ001
            session.add(Order(id=1, name="a", price=Decimal(1), at=at, details=None))
            session.flush()
            if kills.pop(0):
                kill(host_of(session.connection()))

    def with_another_try() -> None:
        try:
            added()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            added()

    with_another_try()
    with Session(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == 1
        host = host_of(session.connection())
    kill(host)
    # What died between two uses is not seen at all.
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1


def test_pre_ping_replaces_a_session_that_the_database_has_ended(
    manager: PoolManager, postgresql: Database
) -> None:
    engine = engine_on(manager, url_of(postgresql), pool_size=1, max_overflow=0, pool_pre_ping=True)
    with engine.connect() as connection:
        first = connection.execute(text("select pg_backend_pid()")).scalar_one()
    postgresql.server.query("select pg_terminate_backend(?)", first)
    with engine.connect() as connection:
        assert connection.execute(text("select pg_backend_pid()")).scalar_one() != first


def test_what_cannot_be_over_hosts_says_so(manager: PoolManager, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'data.db'}"
    with pytest.raises(ConfigurationError, match="asynchronous"):
        shared_async_pool(manager, "shop", placement="host")
    with pytest.raises(ConfigurationError, match="open_in_caller"):
        shared_pool(manager, "shop", placement="host", open_in_caller=True)
    with pytest.raises(ConfigurationError, match="placement='host'"):
        create_engine(
            url, creator=lambda: None, poolclass=shared_pool(manager, "a", placement="host")
        )
    with pytest.raises(ConfigurationError):
        create_engine(url, poolclass=shared_pool(InProcessManager(), "b", placement="host"))
    engine = engine_on(manager, url)
    event.listen(engine, "do_connect", lambda *_: None)
    with pytest.raises(ConfigurationError, match="do_connect"):
        engine.connect()


def test_a_connection_of_a_host_is_not_detached(manager: PoolManager, tmp_path: Path) -> None:
    engine = engine_on(manager, f"sqlite:///{tmp_path / 'data.db'}", pool_size=1, max_overflow=0)
    connection = engine.connect()
    with pytest.raises(sa.exc.InvalidRequestError, match="detached"):
        connection.detach()
    connection.close()
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1

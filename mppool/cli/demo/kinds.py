"""What the demonstration can show: four ways to use a pool, each with an application that gunicorn runs.

Each way also says how to take leases in this process, after the load: nobody may have lost or gained capacity.
"""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mppool.cli.demo import setting
from mppool.cli.failing import FAULT, USAGE, CommandFailed
from mppool.errors import CheckoutTimeout

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mppool.manager import PoolManager

_LEASE_PATIENCE_S = 10.0
_END_PATIENCE_S = 5.0


class Declared(NamedTuple):
    """What a declaration of the pool needs: the same as the workers have."""

    manager: PoolManager
    connection_string: str
    witness: str
    cap: int


@dataclass(frozen=True)
class Kind:
    """One way to use a pool.

    text: how the announcement ends. module: the application. worker_class: of gunicorn. needs: modules, and what installs them.
    only_sqlite: it takes no connection string. only_odbc: it cannot do without the driver manager.
    take: takes as many leases as there are, one more than the cap at most, gives them back, and says how many it had.
    """

    text: str
    module: str
    take: Callable[[Declared], int]
    worker_class: str = "gthread"
    placement: Literal["worker", "host"] = "worker"
    needs: Mapping[str, str] = field(default_factory=dict)
    only_sqlite: bool = False
    only_odbc: bool = False

    def require(self) -> None:
        """CommandFailed, which says what to install, where something is missing."""
        for module, package in self.needs.items():
            if _is_missing(module):
                raise CommandFailed(
                    f"this demonstration needs {module}, which is not installed: pip install {package}",
                    FAULT,
                )

    def database(self, given: str | None, path: Path) -> tuple[str, str | None]:
        """The connection string, and why the standard library opens it. Raises CommandFailed."""
        if self.only_sqlite and given is not None:
            raise CommandFailed("--sqlalchemy does not go with --connection-string", USAGE)
        if self.only_sqlite:
            return f"{setting.STDLIB}{path}", None
        if given is not None:
            return given, None
        found, reason = setting.default_database(path)
        if self.only_odbc and reason is not None:
            raise CommandFailed(f"--asyncio uses ODBC here: {reason}", FAULT)
        return found, reason


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True  # a package above it


def chosen(options: argparse.Namespace) -> Kind:
    """What the command line asks for."""
    return KINDS[options.kind]


# --- leases at the end -----------------------------------------------------------------------------------------


def _take(declared: Declared, placement: Literal["worker", "host"] = "worker") -> int:
    pool = declared.manager.pool(
        "database",
        setting.Witnessed(setting.plain_recipe(declared.connection_string), declared.witness),
        max_size=declared.cap,
        timeout=setting.TIMEOUT_S,
        placement=placement,
    )
    taken = 0
    with ExitStack() as leases:
        try:
            while taken <= declared.cap:
                leases.enter_context(pool.checkout(timeout=_patience(taken, declared.cap)))
                taken += 1
        except CheckoutTimeout:
            pass  # that is all there is
    pool.drain(_END_PATIENCE_S)
    return taken


def _take_by_hosts(declared: Declared) -> int:
    return _take(declared, "host")


def _take_by_engine(declared: Declared) -> int:
    from sqlalchemy import create_engine, exc

    from mppool.integrations.sqlalchemy import shared_pool

    def engine(patience_s: float) -> Any:
        return create_engine(
            setting.engine_url(declared.connection_string),
            connect_args=setting.witnessed_by(declared.witness),
            poolclass=shared_pool(declared.manager, "database"),
            pool_size=declared.cap,
            max_overflow=0,
            pool_timeout=patience_s,
        )

    patient, impatient = engine(_LEASE_PATIENCE_S), engine(0)
    taken = 0
    with ExitStack() as connections:
        try:
            while taken <= declared.cap:
                which = patient if taken < declared.cap else impatient
                connections.enter_context(which.connect())
                taken += 1
        except exc.TimeoutError:
            pass  # that is all there is
    # An engine keeps `pool_size` open: nothing must be opened after the witness has gone.
    declared.manager.resize("database", min_size=0)
    patient.dispose()
    impatient.dispose()
    return taken


def _take_in_a_loop(declared: Declared) -> int:
    async def take() -> int:
        """How many there were."""
        pool = declared.manager.apool(
            "database",
            setting.WitnessedAsync(declared.connection_string, declared.witness),
            max_size=declared.cap,
            timeout=setting.TIMEOUT_S,
        )
        taken = 0
        async with AsyncExitStack() as leases:
            try:
                while taken <= declared.cap:
                    checkout = pool.checkout(timeout=_patience(taken, declared.cap))
                    await leases.enter_async_context(checkout)
                    taken += 1
            except CheckoutTimeout:
                pass  # that is all there is
        await pool.drain(_END_PATIENCE_S)
        return taken

    return asyncio.run(take())


def _patience(taken: int, cap: int) -> float:
    return _LEASE_PATIENCE_S if taken < cap else 0.0


# --- the four ------------------------------------------------------------------------------------------------------

_APPLICATION = "mppool.cli.demo.application"

KINDS = {
    "": Kind("", _APPLICATION, _take),
    "hosts": Kind(
        ", opened in a host, a process of their own", _APPLICATION, _take_by_hosts, placement="host"
    ),
    "sqlalchemy": Kind(
        " through SQLAlchemy's engines",
        f"{_APPLICATION}_sqlalchemy",
        _take_by_engine,
        needs={"sqlalchemy": "'mppool[sqlalchemy]'"},
        only_sqlite=True,
    ),
    "asyncio": Kind(
        " from event loops",
        f"{_APPLICATION}_asyncio",
        _take_in_a_loop,
        worker_class="asgi",
        needs={"aioodbc": "'mppool[aioodbc]'", "gunicorn.workers.gasgi": "'gunicorn>=25'"},
        only_odbc=True,
    ),
}

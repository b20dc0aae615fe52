"""What the demonstration tells its workers, in environment variables, and which database it uses.

The connection string travels in the environment and not in a file: it may hold a password.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mppool.aio.recipe import AsyncRecipe
from mppool.cli.demo.witness import Session
from mppool.dbapi import DbApiRecipe
from mppool.errors import ConfigurationError
from mppool.odbc import OdbcRecipe, driver_manager
from mppool.recipe import Opening, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PREFIX = "MPPOOL_DEMO_"
TIMEOUT_S = 20.0
"""How long a request waits for a connection."""
STDLIB = "sqlite3:"
"""Begins, in the place of a connection string, the path of a database for the standard library."""


def environment(
    *,
    name: str,
    connection_string: str,
    cap: int,
    query_s: float,
    witness: str,
    placement: str = "worker",
) -> Mapping[str, str]:
    """The variables of the workers."""
    values = {
        "MANAGER": name,
        "DATABASE": connection_string,
        "CAP": str(cap),
        "QUERY_S": repr(query_s),
        "WITNESS": witness,
        "PLACEMENT": placement,
    }
    return {_PREFIX + key: value for key, value in values.items()}


def _variable(key: str) -> str:
    try:
        return os.environ[_PREFIX + key]
    except KeyError:
        raise ConfigurationError(
            f"${_PREFIX}{key} is not set: this application is made for `mppool demo`, which sets it"
        ) from None


def manager() -> str:
    """Name of the manager."""
    return _variable("MANAGER")


def cap() -> int:
    """The pool's max_size."""
    return int(_variable("CAP"))


def query_s() -> float:
    """How long a request keeps its connection, in seconds."""
    return float(_variable("QUERY_S"))


def placement() -> Literal["worker", "host"]:
    """Where connections are opened."""
    return "host" if _variable("PLACEMENT") == "host" else "worker"


def recipe() -> Recipe[Any]:
    """How connections are opened, in the sight of the witness."""
    return Witnessed(plain_recipe(_variable("DATABASE")), _variable("WITNESS"))


def async_recipe() -> AsyncRecipe[Any]:
    """The same for an event loop."""
    return WitnessedAsync(_variable("DATABASE"), _variable("WITNESS"))


def url() -> str:
    """The database, as SQLAlchemy wants it."""
    return engine_url(_variable("DATABASE"))


def connect_args() -> dict[str, Any]:
    """What SQLAlchemy's engine hands to sqlite3, for the sight of the witness."""
    return witnessed_by(_variable("WITNESS"))


def plain_recipe(connection_string: str) -> Recipe[Any]:
    """How connections are opened: by ODBC, or by the standard library."""
    if connection_string.startswith(STDLIB):
        path = connection_string.removeprefix(STDLIB)
        return DbApiRecipe(sqlite3.connect, path, check_same_thread=False)
    return OdbcRecipe(connection_string)


def engine_url(connection_string: str) -> str:
    """The URL for a database of the standard library."""
    return f"sqlite:///{connection_string.removeprefix(STDLIB)}"


def witnessed_by(address: str) -> dict[str, Any]:
    """Arguments of `sqlite3.connect`: its connections are seen by the witness at this address."""
    return {"factory": partial(WitnessedConnection, witness=address)}


def default_database(path: Path) -> tuple[str, str | None]:
    """A SQLite database: by ODBC, or by the standard library and the reason why not by ODBC."""
    install = "(Debian, Ubuntu: apt-get install unixodbc libsqliteodbc)"
    try:
        drivers = driver_manager.load().drivers()
    except ConfigurationError as error:
        return f"{STDLIB}{path}", f"no ODBC here: {error}"
    if "SQLite3" not in drivers:
        return f"{STDLIB}{path}", f"SQLite's ODBC driver is not installed {install}"
    return f"Driver=SQLite3;Database={path};Timeout=5000", None


class Witnessed(Recipe[Any]):
    """A recipe whose resources the witness sees from before they are opened until they are closed."""

    def __init__(self, recipe: Recipe[Any], witness: str) -> None:
        self._recipe = recipe
        self._witness = witness
        # By id, with the resource itself, so that no id is recycled while it is remembered.
        self._sessions: dict[int, tuple[Any, Session]] = {}

    def open(self, opening: Opening) -> Any:
        session = Session(self._witness)
        try:
            resource = self._recipe.open(opening)
        except BaseException:
            session.end()
            raise
        self._sessions[id(resource)] = resource, session
        return resource

    def reset(self, resource: Any) -> None:
        self._recipe.reset(resource)

    def check(self, resource: Any) -> bool:
        return self._recipe.check(resource)

    def close(self, resource: Any) -> None:
        self._recipe.close(resource)
        # Only now: a close that raises leaves the session in the eyes of the witness.
        self._sessions.pop(id(resource))[1].end()

    def describe(self, resource: Any) -> str:
        return self._recipe.describe(resource)

    def fingerprint(self) -> str:
        return self._recipe.fingerprint()


class WitnessedAsync(AsyncRecipe[Any]):
    """Connections of aioodbc, which the witness sees as it does those of Witnessed."""

    def __init__(self, connection_string: str, witness: str) -> None:
        from mppool.aioodbc import AioodbcRecipe

        self._recipe = AioodbcRecipe(connection_string)
        self._witness = witness
        self._sessions: dict[int, tuple[Any, Session]] = {}

    async def open(self, opening: Opening) -> Any:
        # The loop waits for the witness: a moment, and nothing can be cancelled halfway.
        session = Session(self._witness)
        try:
            resource = await self._recipe.open(opening)
        except BaseException:
            session.end()
            raise
        self._sessions[id(resource)] = resource, session
        return resource

    async def reset(self, resource: Any) -> None:
        await self._recipe.reset(resource)

    async def check(self, resource: Any) -> bool:
        return await self._recipe.check(resource)

    async def close(self, resource: Any) -> None:
        await self._recipe.close(resource)
        self._sessions.pop(id(resource))[1].end()

    def abandon(self, resource: Any) -> None:
        self._recipe.abandon(resource)
        self._sessions.pop(id(resource))[1].end()

    def fingerprint(self) -> str:
        return self._recipe.fingerprint()


class WitnessedConnection(sqlite3.Connection):
    """A connection that somebody else opens and closes, here SQLAlchemy, and that the witness sees meanwhile."""

    def __init__(self, *args: Any, witness: str, **kwargs: Any) -> None:
        self._session = Session(witness)
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            self._session.end()
            raise

    def close(self) -> None:
        """Close it, and end the session with the witness."""
        super().close()
        self._session.end()

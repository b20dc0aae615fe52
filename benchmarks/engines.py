"""SQLAlchemy's engine.connect() and close, warm: over QueuePool, and over the shared pool."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.load import private_manager
from benchmarks.measuring import interleaved, nanoseconds, pinned
from benchmarks.tables import Table

QUEUE, SHARED = "engine.connect, QueuePool", "engine.connect, shared_pool"
RAW_QUEUE, RAW_SHARED = "engine.raw_connection, QueuePool", "engine.raw_connection, shared_pool"


def run(quick: bool) -> list[Table]:
    """One thread on one CPU, one SQLite connection, which stays open."""
    rounds, repetitions = (2, 100) if quick else (31, 3000)
    with pinned(), _engines() as engines:
        statements = {
            QUEUE: ("engine.connect().close()", engines["queue"]),
            SHARED: ("engine.connect().close()", engines["shared"]),
            RAW_QUEUE: ("engine.raw_connection().close()", engines["queue"]),
            RAW_SHARED: ("engine.raw_connection().close()", engines["shared"]),
        }

        def contestant(statement: str, engine: Any) -> float:
            return nanoseconds(statement, {"engine": engine}, repetitions)

        samples = interleaved(
            {name: lambda pair=pair: contestant(*pair) for name, pair in statements.items()}, rounds
        )
    return [
        Table(
            "engines",
            "SQLAlchemy: a connection that lies ready, taken and given back",
            "ns",
            samples,
            (QUEUE, RAW_QUEUE),
            aims=[f"{SHARED}: at most 1 x {QUEUE}", f"{RAW_SHARED}: at most 1 x {RAW_QUEUE}"],
        )
    ]


@contextlib.contextmanager
def _engines() -> Iterator[dict[str, Any]]:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import QueuePool

    from mppool.integrations.sqlalchemy import shared_pool

    with tempfile.TemporaryDirectory() as directory, private_manager() as manager:
        url = f"sqlite:///{Path(directory) / 'shop.db'}"
        engines = {
            "queue": create_engine(url, poolclass=QueuePool),
            "shared": create_engine(url, poolclass=shared_pool(manager, "shop")),
        }
        try:
            for engine in engines.values():
                engine.connect().close()
            yield engines
        finally:
            for engine in engines.values():
                engine.dispose()


if __name__ == "__main__":
    command({"engines": run})

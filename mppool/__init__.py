"""One pool for all the processes of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mppool._version import __version__ as __version__
    from mppool.aio.lease import AsyncLease
    from mppool.aio.pool import AsyncPool
    from mppool.aio.recipe import AsyncRecipe
    from mppool.errors import (
        CheckoutTimeout,
        ConfigurationError,
        ConfigurationMismatch,
        ForkedLease,
        LeaseReleased,
        OpenFailed,
        PoolClosed,
        PoolError,
        ProtocolError,
        ServerUnavailable,
        StaleLease,
        TooManyWaiting,
    )
    from mppool.in_process import InProcessManager
    from mppool.manager import PoolManager
    from mppool.options import PoolOptions
    from mppool.recipe import Opening, Recipe
    from mppool.secret import Secret
    from mppool.worker.budget import Budget
    from mppool.worker.lease import Lease
    from mppool.worker.pool import Pool

__all__ = [
    "AsyncLease",
    "AsyncPool",
    "AsyncRecipe",
    "Budget",
    "CheckoutTimeout",
    "ConfigurationError",
    "ConfigurationMismatch",
    "ForkedLease",
    "InProcessManager",
    "Lease",
    "LeaseReleased",
    "OpenFailed",
    "Opening",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolManager",
    "PoolOptions",
    "ProtocolError",
    "Recipe",
    "Secret",
    "ServerUnavailable",
    "StaleLease",
    "TooManyWaiting",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for.

    The server is a process of this package too, and starts twice as quickly without the worker's wing.
    """
    if name not in __all__ and name != "__version__":
        raise AttributeError(f"module 'mppool' has no attribute {name!r}")
    value = getattr(_home_of(name), name)
    globals()[name] = value
    return value


def _home_of(name: str) -> Any:
    """The module that defines a public name."""
    if name == "__version__":
        from mppool import _version

        return _version
    if name == "PoolManager":
        from mppool import manager

        return manager
    if name == "InProcessManager":
        from mppool import in_process

        return in_process
    if name in {"Opening", "Recipe"}:
        from mppool import recipe

        return recipe
    if name == "Secret":
        from mppool import secret

        return secret
    if name == "PoolOptions":
        from mppool import options

        return options
    if name == "Budget":
        from mppool.worker import budget

        return budget
    if name == "Lease":
        from mppool.worker import lease

        return lease
    if name == "Pool":
        from mppool.worker import pool

        return pool
    if name in {"AsyncLease", "AsyncPool", "AsyncRecipe"}:
        return _asynchronous(name)
    from mppool import errors

    return errors


def _asynchronous(name: str) -> Any:
    if name == "AsyncRecipe":
        from mppool.aio import recipe

        return recipe
    if name == "AsyncLease":
        from mppool.aio import lease

        return lease
    from mppool.aio import pool

    return pool


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

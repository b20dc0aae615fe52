"""One pool for all the processes of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from mppool.worker.lease import Lease
    from mppool.worker.pool import Pool

__version__ = "0.1.0"

__all__ = [
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
    "ServerUnavailable",
    "StaleLease",
    "TooManyWaiting",
]

_HOME_OF = {
    "InProcessManager": "mppool.in_process",
    "Lease": "mppool.worker.lease",
    "Opening": "mppool.recipe",
    "Pool": "mppool.worker.pool",
    "PoolManager": "mppool.manager",
    "PoolOptions": "mppool.options",
    "Recipe": "mppool.recipe",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for.

    The server is a process of this package too, and starts twice as quickly without the worker's wing.
    """
    if name not in __all__:
        raise AttributeError(f"module 'mppool' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME_OF.get(name, "mppool.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

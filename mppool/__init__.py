"""One pool for all the processes of an application."""

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
from mppool.manager import InProcessManager, PoolManager
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

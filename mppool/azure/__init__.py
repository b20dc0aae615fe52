"""Azure: whose connection it is, one token for all processes, and clients that threads share.

Importing this needs none of Azure's packages; they are imported where they are first used (extra `azure`).
The pools of clients and the asynchronous credential are loaded when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mppool.credentials.credential import StaticToken, get_token_info
from mppool.credentials.identity import compute_identity_key, identity_of
from mppool.credentials.shared import SharedCredential
from mppool.credentials.token_struct import TokenInfo, is_token_near_expiry, token_struct

if TYPE_CHECKING:
    from types import ModuleType

    from mppool.azure.blob import (
        BlobServicePool,
        blob_service,
        prune_idle_blob_service_clients,
        reset_blob_service_pool,
    )
    from mppool.azure.clients import ClientPool
    from mppool.credentials.shared_async import AsyncSharedCredential

__all__ = [
    "AsyncSharedCredential",
    "BlobServicePool",
    "ClientPool",
    "SharedCredential",
    "StaticToken",
    "TokenInfo",
    "blob_service",
    "compute_identity_key",
    "get_token_info",
    "identity_of",
    "is_token_near_expiry",
    "prune_idle_blob_service_clients",
    "reset_blob_service_pool",
    "token_struct",
]


def __getattr__(name: str) -> Any:
    """Load what is heavy when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: ModuleType
    if name == "AsyncSharedCredential":
        import mppool.credentials.shared_async as home
    else:
        import mppool.azure.blob as home  # it has ClientPool too
    found = globals()[name] = getattr(home, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

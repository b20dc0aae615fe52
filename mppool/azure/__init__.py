"""Azure: whose connection it is, one token for all processes, and clients that threads share.

Importing this needs none of Azure's packages; they are imported where they are first used (extra `azure`).
"""

from mppool.azure.blob import (
    BlobServicePool,
    blob_service,
    prune_idle_blob_service_clients,
    reset_blob_service_pool,
)
from mppool.azure.clients import ClientPool
from mppool.azure.credentials import StaticToken, get_token_info
from mppool.azure.identity import compute_identity_key, identity_of
from mppool.azure.shared import SharedCredential
from mppool.azure.shared_async import AsyncSharedCredential
from mppool.azure.token import TokenInfo, is_token_near_expiry, token_struct

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

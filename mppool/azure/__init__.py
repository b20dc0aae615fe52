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
from mppool.credentials.credential import StaticToken, get_token_info
from mppool.credentials.identity import compute_identity_key, identity_of
from mppool.credentials.shared import SharedCredential
from mppool.credentials.shared_async import AsyncSharedCredential
from mppool.credentials.token_struct import TokenInfo, is_token_near_expiry, token_struct

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

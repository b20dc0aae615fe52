"""Azure identities and tokens: whose connection it is, and one token for all processes.

Importing this needs none of Azure's packages; they are imported where they are first used (extra `azure`).
"""

from mppool.azure.credentials import StaticToken, get_token_info
from mppool.azure.identity import compute_identity_key, identity_of
from mppool.azure.shared import SharedCredential
from mppool.azure.shared_async import AsyncSharedCredential
from mppool.azure.token import TokenInfo, is_token_near_expiry, token_struct

__all__ = [
    "AsyncSharedCredential",
    "SharedCredential",
    "StaticToken",
    "TokenInfo",
    "compute_identity_key",
    "get_token_info",
    "identity_of",
    "is_token_near_expiry",
    "token_struct",
]

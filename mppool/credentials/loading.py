"""The adapter, loaded when a credential is first used: most applications have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mppool.credentials.adapter import CredentialAdapter

_adapter: CredentialAdapter | None = None


def adapter() -> CredentialAdapter:
    """What pools ask of credentials."""
    global _adapter
    if _adapter is None:
        from mppool.credentials.adapter import CredentialAdapter

        _adapter = (
            CredentialAdapter()
        )  # it has no state, so it does not matter which thread is first
    return _adapter

"""A shared access signature that clients follow: `AzureSasCredential.update()` reaches those that are held.

Credentials with the same signature share a client. It follows them as long as they agree: where one of them is
updated and another one is not, nobody knows for whom a request is, and nothing changes for the client.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any


def _reference(source: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(source)
    except TypeError:  # it cannot be referred to weakly
        return lambda: source


@functools.cache
def _live_class() -> Any:
    from azure.core.credentials import AzureSasCredential

    class LiveSas(AzureSasCredential):
        """What the SDK's client is given in place of the application's credential, which it does not keep alive."""

        def __init__(self, signature: str, source: Any) -> None:
            super().__init__(signature)
            self._sources: list[Callable[[], Any]] = [_reference(source)]

        @property
        def signature(self) -> str:
            """What the application's credentials say now, as long as they agree; else what they said last."""
            alive = [one for reference in self._sources if (one := reference()) is not None]
            said = {one.signature for one in alive}
            if len(said) == 1:
                self._signature = said.pop()
            return self._signature

        def serves(self, sas: Any) -> bool:
            """Whether a client with this one is right for that credential of the application too.

            Caller holds the lock of the clients.
            """
            alive = [one for one in self._sources if one() is not None]
            if any(one() is sas for one in alive):
                return True
            if self.signature != sas.signature:
                return False  # it was updated meanwhile
            self._sources = [*alive, _reference(sas)]
            return True

        def __reduce__(self) -> Any:
            raise TypeError(
                "a credential does not leave its process; ask the pool of the other process"
            )

    return LiveSas


def live_sas(signature: str, source: Any) -> Any:
    """A credential for one client, which follows the application's."""
    return _live_class()(signature, source)

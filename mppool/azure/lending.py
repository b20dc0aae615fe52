"""What the pool gives to an SDK's client in place of the application's credential.

A client holds its credential for life. If that were the application's own, the pool would keep it alive, and
would never learn that it is gone (hazard 30). So clients get one that refers to it weakly and takes its
tokens from `manager.credential`, which shares them with all clients of all processes.
"""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from typing import Any

from mppool.credentials.credential import StaticToken, is_async
from mppool.credentials.identity import identity_of, is_interactive
from mppool.credentials.objects import fit_for_use
from mppool.credentials.shared import Shared
from mppool.credentials.source import loops_of
from mppool.errors import StaleLease

GONE = (
    "the credential of this client was garbage-collected, so the client is closed; keep the credential as "
    "long as its clients (the pool does not keep it alive), or ask the pool for a client of another one"
)


class _Weak:
    """The application's credential, not kept alive. `manager.credential` is given this where it keeps what it gets."""

    def __init__(self, credential: Any) -> None:
        try:
            self._reference: Any = weakref.ref(credential)
        except TypeError:  # its pool keeps it alive too
            self._reference = lambda: credential

    def alive(self) -> Any:
        """The credential. Raises StaleLease when it is gone."""
        credential = self._reference()
        if credential is None:
            raise StaleLease(GONE)
        return credential

    def fit(self) -> Any:
        """The credential, or in a forked child one that shares no connection with the parent's."""
        credential = self.alive()
        return fit_for_use(credential) if isinstance(self._reference, weakref.ref) else credential

    def mppool_identity(self) -> str | None:
        """See `identity_of`."""
        return identity_of(self.alive())

    def __reduce__(self) -> Any:
        raise TypeError("a credential does not leave its process")


class _WeakSync(_Weak):
    def get_token(self, *scopes: str, **options: Any) -> Any:
        """From the application's credential."""
        return self.fit().get_token(*scopes, **options)

    def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        """From the application's credential, with `refresh_on` where it tells that."""
        credential = self.fit()
        if callable(getattr(credential, "get_token_info", None)):
            return credential.get_token_info(*scopes, options=options or {})
        return credential.get_token(*scopes, **(options or {}))


class _WeakAsync(_Weak):
    def fit(self) -> Any:
        """What stands for the credential in the running event loop."""
        credential = super().fit()
        return loops_of(credential).here(credential)

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        """From the application's credential."""
        return await self.fit().get_token(*scopes, **options)

    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        """From the application's credential, with `refresh_on` where it tells that."""
        credential = self.fit()
        if callable(getattr(credential, "get_token_info", None)):
            return await credential.get_token_info(*scopes, options=options or {})
        return await credential.get_token(*scopes, **(options or {}))


class _Lent(ABC):
    """For the SDK's client: fails at once when the application's credential is gone, also where tokens are left."""

    def __init__(self, manager: Any, credential: Any, asynchronous: bool) -> None:
        self._manager = manager
        self._weak = (_WeakAsync if is_async(credential) else _WeakSync)(credential)
        self._made: dict[str, Any] = {}
        self._asynchronous = asynchronous

    def _source(self, credential: Any) -> Any:
        if isinstance(credential, StaticToken):
            return credential
        if isinstance(credential, Shared):
            if is_async(credential) == self._asynchronous:
                return credential
            return self._share(
                credential
            )  # which takes what is in it: shared twice would wait for itself
        if is_interactive(credential):
            # A SharedCredential knows this class itself: who is signed in, and how to ask.
            return self._share(credential)
        # One, whichever thread comes first: it makes the others wait while it fetches a token.
        return self._made.get("") or self._made.setdefault("", self._share(self._weak))

    @abstractmethod
    def _share(self, credential: Any) -> Any:
        """A SharedCredential over it, of the manager's tokens."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__.strip('_')} credential>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a credential does not leave its process; ask the pool of the other process"
        )


class _LentSync(_Lent):
    def _share(self, credential: Any) -> Any:
        return self._manager.credential(credential)

    def get_token(self, *scopes: str, **options: Any) -> Any:
        """A shared token. Raises StaleLease when the application's credential is gone."""
        credential = self._weak.alive()
        return self._source(credential).get_token(*scopes, **options)

    def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        """A shared token. Raises StaleLease when the application's credential is gone."""
        credential = self._weak.alive()
        return self._source(credential).get_token_info(*scopes, options=options or {})


class _LentAsync(_Lent):
    def _share(self, credential: Any) -> Any:
        return self._manager.async_credential(credential)

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        """A shared token. Raises StaleLease when the application's credential is gone."""
        credential = self._weak.alive()
        return await _awaited(self._source(credential).get_token(*scopes, **options))

    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        """A shared token. Raises StaleLease when the application's credential is gone."""
        credential = self._weak.alive()
        source = self._source(credential)
        return await _awaited(source.get_token_info(*scopes, options=options or {}))


async def _awaited(answer: Any) -> Any:
    """Tokens that the application brings come without waiting, from a credential of either kind."""
    return await answer if inspect.isawaitable(answer) else answer


def lend(manager: Any, credential: Any, *, asynchronous: bool) -> Any:
    """A credential for one SDK client, which keeps the application's credential not alive."""
    return (_LentAsync if asynchronous else _LentSync)(manager, credential, asynchronous)

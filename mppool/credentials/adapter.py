"""CredentialAdapter: what pools ask of credentials."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from mppool.credentials.credential import (
    RawToken,
    StaticToken,
    check_credential,
    get_token_info,
    is_async,
)
from mppool.credentials.errors import describe
from mppool.credentials.identity import (
    azure_class_of,
    compute_identity_key,
    has_account,
    home_account_of,
    identity_of,
)
from mppool.credentials.objects import fit_for_use
from mppool.credentials.shared import Shared
from mppool.credentials.source import CredentialTokens, Home, loops_of, note_cost
from mppool.credentials.token_struct import TokenInfo, token_struct
from mppool.errors import ConfigurationError
from mppool.redaction import HIDDEN


class CredentialAdapter:
    """Says whose credential it is, and gets its tokens: those that all processes share, where that is known."""

    def check(self, credential: object, *, asynchronous: bool = False) -> None:
        """Raises ConfigurationError for anything but a token credential.

        asynchronous: whether coroutines may give its tokens, because there is an event loop to await them.
        """
        check_credential(credential)
        if is_async(credential) and not asynchronous:
            raise ConfigurationError(
                f"{type(credential).__name__} is an asynchronous credential, and connections are opened in "
                "threads, also for acheckout; give the synchronous class of the same name in azure.identity, or "
                "declare the pool with manager.apool"
            )

    def identity_of(self, credential: Any) -> str | None:
        """Whom it stands for; None: only a token can tell."""
        return identity_of(_here(credential))

    def is_brought(self, credential: Any) -> bool:
        """Whether it holds a token of the application's own."""
        return isinstance(_unshared(credential), StaticToken)

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether both stand for the same identity as far as anybody can tell."""
        named = identity_of(one)
        if named is not None and named == identity_of(other):
            return True
        one, other = _unshared(one), _unshared(other)
        if one is other:
            return True
        if isinstance(one, StaticToken) and isinstance(other, StaticToken):
            return one.raw().token == other.raw().token
        identity = identity_of(one)
        if identity is None and azure_class_of(one) == "DefaultAzureCredential":
            return azure_class_of(other) == "DefaultAzureCredential"  # one ambient identity
        return identity is not None and identity == identity_of(other)

    def fetch(
        self,
        home: Home,
        credential: Any,
        scope: str,
        identity: str | None,
        timeout: float | None,
        unlike: str = "",
        loop: Any = None,
    ) -> TokenInfo:
        """A token: shared by all processes where the identity is known, else the credential's own.

        loop: the event loop in which an asynchronous credential is asked; None: there is none.
        """
        inner = _unshared(credential)
        asker = _asker(inner, loop)
        known = identity is not None or identity_of(_here(credential)) is not None
        if self.is_brought(inner) or not (known or _is_one_identity(inner)):
            # Nobody knows whether the next token is the same one's: it is asked for each time.
            began = monotonic()
            try:
                return get_token_info(inner if asker else credential, scope, asker)
            finally:
                note_cost(home, inner, monotonic() - began)
        tokens = CredentialTokens(home, inner, identity or _named(credential))
        held = tokens.hold((scope,), unlike=unlike, timeout=timeout, asker=asker)
        return TokenInfo(token_struct(held.token), held.expires_on, home_account_of(_here(inner)))

    def spurned(
        self, home: Home, credential: Any, scope: str, identity: str | None, token: str
    ) -> None:
        """A login with this token (its digest) was refused. Once in a while another one is fetched for all."""
        inner = _unshared(credential)
        known = identity is not None or identity_of(_here(credential)) is not None
        if not self.is_brought(inner) and (known or _is_one_identity(inner)):
            CredentialTokens(home, inner, identity or _named(credential)).spurned((scope,), token)

    def told(self, error: Exception) -> tuple[str, bool]:
        """The text of a credential's error without what could be a secret, and whether nothing is left out."""
        text = describe(error).text
        return text, HIDDEN not in text

    def identity_from(self, token: TokenInfo) -> str:
        """The hash of the whole token: its claims may be forged (hazard 31)."""
        identity = compute_identity_key("token", token_struct=token.token_struct)
        assert identity is not None
        return identity


def _asker(credential: Any, loop: Any) -> Callable[..., RawToken] | None:
    """What asks an asynchronous credential; None: it is a plain one, which is called."""
    if not is_async(credential):
        return None
    if loop is None:
        raise ConfigurationError(
            f"{type(credential).__name__} is an asynchronous credential, and no event loop of this process uses the "
            "pool: check out in one"
        )
    from mppool.credentials.shared_async import asker_in  # it loads asyncio

    return asker_in(loop, loops_of(credential))


def _unshared(credential: Any) -> Any:
    """What a SharedCredential asks: two that share would wait for each other."""
    return credential.unshared if isinstance(credential, Shared) else credential


def _here(credential: Any) -> Any:
    """The object that people sign in to in this process: in a forked child that is a copy."""
    return fit_for_use(credential) if has_account(credential) else credential


def _named(credential: Any) -> str | None:
    """The identity that the application has given to a SharedCredential."""
    return credential._identity if isinstance(credential, Shared) else None


def _is_one_identity(credential: Any) -> bool:
    """Whether all tokens of this object are of one identity, although nobody knows which.

    An unknown class may look at a request, a thread or a context to see for whom it is asked.
    """
    return azure_class_of(credential) not in ("", "ChainedTokenCredential")

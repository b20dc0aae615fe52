"""The tokens of one credential: from the copies of this process, from the server, or from the credential.

hold() -> identity known without a token?  yes: the member's shared tokens, one fetch for all processes
                                           no:  the tokens of this process alone, one fetch for its threads
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from mppool.core.tokens import FETCH_PATIENCE_S, TokenCost, TokenKey
from mppool.credentials.credential import RawToken, ask, check_credential, insisting, is_async
from mppool.credentials.errors import OnlyHere, describe, is_refusal, raise_for_others
from mppool.credentials.identity import (
    azure_class_of,
    checked_identity,
    has_account,
    has_half_surrogate,
    identity_of,
    last_response_of,
)
from mppool.credentials.objects import belongings_of, fit_for_use
from mppool.credentials.token_struct import MAX_TOKEN_BYTES, UNKNOWN_LIFE_S
from mppool.errors import ConfigurationError
from mppool.process.fork import renew_in_children
from mppool.tokens.cache import DEFAULT_TIMEOUT_S, TokenCache
from mppool.tokens.cached_token import CachedToken, Failure, Fetched, Source, TokenUnavailable
from mppool.tokens.in_process import LocalTokenBooks

if TYPE_CHECKING:
    from mppool.core.events import Event
    from mppool.credentials.credential_loops import CredentialLoops


class Home(Protocol):
    """Whose shared tokens these are: this process as a member of a manager."""

    tokens: TokenCache

    def note(self, event: Event) -> None:
        """Tell the books what is worth knowing, if this process is attached to any."""

    def attend(self) -> None:
        """Hear, from soon on, what is said to all processes."""


class Manager(Protocol):
    """What credentials know of a PoolManager."""

    _member: Any


PROMPT_PATIENCE_S = 1800.0
"""A person who signs in may take their time; nobody else is asked meanwhile."""

PROMPT_TIMEOUT_S = 300.0
"""So long the others wait for a person who signs in, where they name no timeout (azure-identity's default)."""

NOTABLE_S = 0.02
"""A token that came faster came from a cache."""

_ACCOUNT_CHANGES = 3

_UNKNOWN = "unknown"
"""Identity in the keys of a credential's own token cache."""

MOST_SCOPES = 64


class _AccountChanged(OnlyHere):
    """Somebody else than before has signed in: the token is not of the identity that was asked for."""


class _Closed(OnlyHere):
    """The credential was closed meanwhile, so it refreshes nothing."""


class _Common:
    """What all supplies of one credential object have in common, whatever pool or client they are for.

    asking: held while a credential with a signed-in account is asked, so that two threads that want tokens
        for two scopes do not make it prompt twice.
    """

    def __init__(self) -> None:
        self.asking = threading.Lock()
        self._alone: dict[str, LocalTokenBooks] = {}
        self._loops: dict[str, CredentialLoops] = {}
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """The thread that was asking does not exist here."""
        self.asking = threading.Lock()
        for books in self._alone.values():
            books.after_fork_in_child()
        for loops in self._loops.values():
            loops.renew()

    def loops(self) -> CredentialLoops:
        """What stands for an asynchronous credential in which event loop."""
        from mppool.credentials.credential_loops import CredentialLoops

        found = self._loops.get("")
        return self._loops.setdefault("", CredentialLoops()) if found is None else found

    def alone(self) -> LocalTokenBooks:
        """The tokens of this process alone, made when they are first needed."""
        found = self._alone.get("")
        return self._alone.setdefault("", LocalTokenBooks()) if found is None else found


class CredentialTokens:
    """Hands out tokens of one credential.

    identity: what the credential stands for, the same in all processes; None: see `identity_of`.
    """

    def __init__(self, home: Home, credential: Any, identity: str | None = None) -> None:
        self._home = home
        self._given = checked_identity(identity)
        self.credential = credential
        self.closed = False
        self._by_account = identity is None and has_account(credential)
        self._fixed = self._given
        if self._fixed is None and not self._by_account:
            self._fixed = identity_of(credential)
        self._common, self._is_known = self._common_of(credential)

    @staticmethod
    def _common_of(credential: Any) -> tuple[_Common, bool]:
        """And whether the object can be told from others, so that a copy of it can be kept for it."""
        try:
            return belongings_of(credential, _Common), True
        except ConfigurationError:  # it cannot be referred to weakly
            return _Common(), False

    @property
    def loops(self) -> CredentialLoops:
        """What stands for an asynchronous credential in which event loop."""
        return self._common.loops()

    @property
    def identity(self) -> str | None:
        """Whom the credential stands for; None: its tokens are not shared between processes."""
        return identity_of(self._fit()) if self._by_account else self._fixed

    def where(
        self, scopes: tuple[str, ...], tenant_id: str, enable_cae: bool
    ) -> tuple[TokenCache, TokenKey]:
        """Where such a token is kept, and under which key. Raises ConfigurationError for bad arguments."""
        _check_texts(scopes, tenant_id)
        identity = self.identity
        if identity is not None:
            return self._home.tokens, TokenKey(identity, scopes, tenant_id, bool(enable_cae))
        return self._common.alone().cache, TokenKey(_UNKNOWN, scopes, tenant_id, bool(enable_cae))

    def hold(
        self,
        scopes: tuple[str, ...],
        *,
        claims: str = "",
        tenant_id: str = "",
        enable_cae: bool = False,
        unlike: str = "",
        timeout: float | None = None,
        asker: Callable[..., RawToken] | None = None,
    ) -> CachedToken:
        """A token that may be used.

        claims: of a challenge, which refused the token that was handed out last.
        unlike: digest of a token that is near its end, of which another one is wanted (see TokenCache.get).
        timeout: seconds to wait for another process or thread that fetches; None: the default, which is
            longer where a person may have to sign in.
        asker: asks the credential, with the arguments of `credentials.ask`.

        Raises what the credential raises; ClientAuthenticationError where another process failed to fetch,
        or within the timeout; ConfigurationError for bad arguments and for an answer that is not a token.
        """
        _check_text("claims", claims)
        if timeout is None:
            timeout = PROMPT_TIMEOUT_S if self._by_account else DEFAULT_TIMEOUT_S
        asker = asker or ask
        for _ in range(_ACCOUNT_CHANGES):
            share, key = self.where(scopes, tenant_id, enable_cae)
            source = self._source(share, key, asker, timeout)
            try:
                held = share.get(key, source, claims=claims, unlike=unlike, timeout=timeout)
            except _AccountChanged:
                continue  # the token is there, under the key of the other account
            except TokenUnavailable as error:
                raise_for_others(error)
            if not self._by_account or key.identity != _UNKNOWN or self.identity is None:
                return held
            claims = ""  # now it is known who has signed in: silently, under the account's key, and shared
        raise ConfigurationError(
            f"the account that is signed in to this {azure_class_of(self.credential)} changes again and "
            "again; use one credential for each account"
        )

    def spurned(self, scopes: tuple[str, ...], token: str) -> None:
        """What a token is for has refused it: see TokenCache.spurn. token: its digest."""
        share, key = self.where(scopes, "", False)
        share.spurn(key, token)

    def _source(
        self, share: TokenCache, key: TokenKey, asker: Callable[..., RawToken], timeout: float
    ) -> Source:
        return Source(
            lambda claims: self._fetch(share, key, asker, claims, True, timeout),
            self._describe,
            insist=lambda: self._fetch(
                share, key, asker, insisting(self.credential), True, timeout
            ),
            refresh=lambda: self._fetch(share, key, asker, "", False, FETCH_PATIENCE_S),
            patience=PROMPT_PATIENCE_S if self._may_prompt() else FETCH_PATIENCE_S,
        )

    def _describe(self, error: Exception) -> Failure:
        failure = describe(error, last_response_of(self.credential, str(error)))
        if self._may_prompt() and failure.retry_in > 0 and is_refusal(error):
            return failure._replace(
                everybody=True
            )  # a person said no; nobody may ask again at once
        return failure

    def _may_prompt(self) -> bool:
        return has_account(self.credential) or hasattr(self.credential, "authenticate")

    def _fetch(
        self,
        share: TokenCache,
        key: TokenKey,
        asker: Callable[..., RawToken],
        claims: str,
        may_prompt: bool,
        timeout: float,
    ) -> Fetched:
        if not self._may_prompt():
            return _as_fetched(self._ask(asker, key, claims, may_prompt))
        asking = self._common.asking
        if not asking.acquire(timeout=timeout):
            raise TokenUnavailable("somebody is still signing in", 0.0)
        try:
            raw = self._ask(asker, key, claims, may_prompt)
            shared = share is self._home.tokens
            if self._by_account and shared and self.identity != key.identity:
                raise _AccountChanged("another account has signed in")
            return _as_fetched(raw)
        finally:
            asking.release()

    def _ask(
        self, asker: Callable[..., RawToken], key: TokenKey, claims: str, may_prompt: bool
    ) -> RawToken:
        if self.closed:
            raise _Closed("the credential was closed")
        if key.identity == _UNKNOWN:
            # Else a process that shares nothing would never hear that tokens are to be forgotten.
            self._home.attend()
        began = monotonic()
        try:
            return asker(
                self._fit(),
                key.scopes,
                claims=claims,
                tenant_id=key.tenant,
                enable_cae=key.cae,
                may_prompt=may_prompt,
            )
        finally:
            if key.identity == _UNKNOWN:
                note_cost(self._home, self.credential, monotonic() - began)

    def _fit(self) -> Any:
        """The credential, or in a forked child a copy, which is the one that people sign in to there."""
        if self._is_known:
            self.credential = fit_for_use(self.credential)
        return self.credential


def note_cost(home: Home, credential: Any, seconds: float) -> None:
    """Have `mppool doctor` see what a credential costs whose tokens are not shared between processes."""
    if seconds >= NOTABLE_S:
        home.note(TokenCost(azure_class_of(credential) or type(credential).__name__, seconds))


def loops_of(credential: Any) -> CredentialLoops:
    """What stands for an asynchronous credential in which event loop."""
    return CredentialTokens._common_of(credential)[0].loops()


def _as_fetched(raw: RawToken) -> Fetched:
    expires_on = raw.expires_on if raw.expires_on is not None else time.time() + UNKNOWN_LIFE_S
    return Fetched(raw.token, expires_on, raw.refresh_on)


# --- bad use ----------------------------------------------------------------------------------------------


def checked_credential(credential: Any, *, asynchronous: bool) -> Any:
    """The credential, if it is one. Raises ConfigurationError."""
    check_credential(credential)
    if not asynchronous and is_async(credential):
        raise ConfigurationError(
            f"{type(credential).__name__} is an asynchronous credential; use manager.async_credential, or "
            "the synchronous class of the same name in azure.identity"
        )
    return credential


def _check_texts(scopes: tuple[str, ...], tenant_id: str) -> None:
    if not scopes:
        raise ConfigurationError(
            "a token is for at least one scope, for example 'https://database.windows.net/.default'"
        )
    if len(scopes) > MOST_SCOPES:
        raise ConfigurationError(f"{len(scopes)} scopes; at most {MOST_SCOPES} are allowed")
    for scope in scopes:
        _check_text("a scope", scope)
        if not scope:
            raise ConfigurationError("a scope is empty")
    _check_text("tenant_id", tenant_id)


def _check_text(name: str, value: object, longest: int = MAX_TOKEN_BYTES) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is a {type(value).__name__}; give a str")
    if len(value) > longest:
        raise ConfigurationError(f"{name} is longer than {longest} characters")
    if has_half_surrogate(value):
        raise ConfigurationError(f"{name} holds half a surrogate pair, so it cannot be encoded")

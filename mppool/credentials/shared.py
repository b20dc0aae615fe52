"""A credential for Azure's clients whose tokens are fetched once for all processes."""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.credentials.credential import StaticToken
from mppool.credentials.identity import checked_identity
from mppool.credentials.source import (
    CredentialTokens,
    Manager,
    checked_credential,
)
from mppool.errors import ConfigurationError, PoolClosed
from mppool.process.fork import renew_in_children

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo

    from mppool.tokens.cached_token import CachedToken

C = TypeVar("C", bound="Shared")

_KNOWN_OPTIONS = frozenset({"claims", "tenant_id", "enable_cae"})

_MANY = 1024
"""Of copies at hand; with more the dict is emptied, because the copies proper are elsewhere."""

_Request = tuple[tuple[str, ...], Any, Any]


class Shared:
    """What the synchronous and the asynchronous credential have in common.

    _ready: by scopes, tenant and CAE, the copy that this process holds, in the form that is handed out. A
        copy that is replaced says so itself (its `ask_at`), so this needs neither lock nor care.
    """

    _asynchronous = False

    def __init__(self, manager: Manager, credential: Any, *, identity: str | None = None) -> None:
        checked_identity(identity)
        if isinstance(credential, Shared):
            # Two wrappers would wait for each other.
            identity = identity or credential._identity
            credential = credential.unshared
        self._manager = manager
        self._identity: str | None = identity
        checked = checked_credential(credential, asynchronous=self._asynchronous)
        self._tokens = CredentialTokens(manager._member, checked, identity)
        # A brought token is the application's business, and there is nothing to fetch.
        self._brought = isinstance(credential, StaticToken)
        self._ready: dict[_Request, tuple[CachedToken, AccessToken]] = {}
        self._record: object = None
        self._closed = False
        self._token_type, self._info_type = _types_of_azure_core()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """In a child people sign in to a copy: the first look goes there, and not to what is at hand."""
        self._ready = {}

    @property
    def unshared(self) -> Any:
        """The credential that is asked for tokens."""
        return self._tokens.credential

    def mppool_identity(self) -> str | None:
        """Whom it stands for: see `identity_of`."""
        return self._tokens.identity

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self._manager, self.unshared, self._identity))

    def __repr__(self) -> str:
        kind = type(self.unshared).__name__
        identity = self._tokens.identity or "known only by its tokens"
        return f"<{type(self).__name__} over {kind}, identity {identity}>"

    def _look(self, request: _Request) -> tuple[CachedToken, AccessToken] | None:
        """The copy that may be handed out without asking anybody."""
        try:
            ready = self._ready.get(request)
        except TypeError:
            return None  # perhaps a scope that is not a text; the slow way says so
        if ready is None:
            return None
        held = ready[0]
        if monotonic() >= held.ask_at or time() >= held.usable_until:
            return None
        if self._record is not getattr(self._tokens.credential, "_auth_record", None):
            return None  # somebody else has signed in
        return ready

    def _make_ready(self, request: _Request, held: CachedToken) -> tuple[CachedToken, AccessToken]:
        record = getattr(self._tokens.credential, "_auth_record", None)
        if record is not self._record or len(self._ready) >= _MANY:
            self._ready.clear()
            self._record = record
        ready = (held, self._token_type(held.token, int(held.expires_on)))
        self._ready[request] = ready
        return ready

    def _as_info(self, held: CachedToken) -> AccessTokenInfo:
        refresh_on = None if held.refresh_on is None else int(held.refresh_on)
        return self._info_type(held.token, int(held.expires_on), refresh_on=refresh_on)

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(
                f"the shared credential over {type(self.unshared).__name__} was closed; make another one "
                "with manager.credential(...)"
            )


class SharedCredential(Shared):
    """An azure-core TokenCredential, and SupportsTokenInfo, for any Azure SDK client.

    One fetch for each identity, scope, tenant and CAE over all processes of the manager; while a token is
    valid it is refreshed ahead of time by one process, and a failure of that is nobody's problem. A claims
    challenge bypasses and replaces the token that is there. See docs/tokens.md.

    Made by `manager.credential(credential, identity=...)`.
    """

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> AccessToken:
        """A token for the scopes.

        claims: of a claims challenge: the last token was refused.
        timeout: seconds to wait while another process or thread fetches the token (azure-core has no such
            argument; the default is 60, and 300 where a person may have to sign in).
        options: others that the credential knows: it is asked itself, and nothing is shared.

        Raises what the credential raises; where another process has failed to fetch this token, a
        ClientAuthenticationError with the text of that failure.
        """
        if not claims and not options:
            ready = self._look((scopes, tenant_id, enable_cae))
            if ready is not None:
                return ready[1]
        if options or self._brought:
            return self._ask_itself(scopes, claims, tenant_id, enable_cae, options)
        return self._get((scopes, tenant_id, enable_cae), claims, timeout)[1]

    def get_token_info(
        self, *scopes: str, options: Any = None, timeout: float | None = None
    ) -> AccessTokenInfo:
        """The same, with the time at which its issuer wants it refreshed (`refresh_on`), where it said one."""
        if not options:
            ready = self._look((scopes, None, False))
            if ready is not None:
                return self._as_info(ready[0])
            options = {}
        if self._brought or not _KNOWN_OPTIONS.issuperset(options):
            self._check_open()
            answer: AccessTokenInfo = self.unshared.get_token_info(*scopes, options=options)
            return answer
        claims = options.get("claims")
        request = (scopes, options.get("tenant_id"), bool(options.get("enable_cae")))
        ready = self._look(request) if not claims else None
        return self._as_info((ready or self._get(request, claims, timeout))[0])

    def close(self) -> None:
        """Close the credential that is wrapped. Tokens that other processes share stay theirs.

        From then on `get_token` raises PoolClosed. Closing again does nothing.
        """
        if self._closed:
            return
        self._closed = self._tokens.closed = True
        self._ready.clear()
        close = getattr(self.unshared, "close", None)
        if callable(close):
            close()

    def __enter__(self) -> SharedCredential:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _get(
        self, request: _Request, claims: str | None, timeout: float | None
    ) -> tuple[CachedToken, AccessToken]:
        self._check_open()
        scopes, tenant_id, enable_cae = request
        held = self._tokens.hold(
            scopes,
            claims=claims or "",
            tenant_id=tenant_id or "",
            enable_cae=enable_cae,
            timeout=timeout,
        )
        return self._make_ready(request, held)

    def _ask_itself(
        self,
        scopes: tuple[str, ...],
        claims: str | None,
        tenant_id: str | None,
        enable_cae: bool,
        options: dict[str, Any],
    ) -> AccessToken:
        self._check_open()
        answer: AccessToken = self.unshared.get_token(
            *scopes, claims=claims, tenant_id=tenant_id, enable_cae=enable_cae, **options
        )
        return answer


def _rebuild(cls: type[C], manager: Manager, credential: Any, identity: str | None) -> C:
    return cls(manager, credential, identity=identity)


def _types_of_azure_core() -> tuple[type[AccessToken], type[AccessTokenInfo]]:
    """What tokens are handed out in. An import statement for each token would cost more than the look-up."""
    try:
        from azure.core.credentials import AccessToken, AccessTokenInfo
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"shared credentials need mppool's extra for Azure ({error}): pip install 'mppool[azure]'"
        ) from error
    return AccessToken, AccessTokenInfo

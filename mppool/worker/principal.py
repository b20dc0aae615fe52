"""For whom one checkout is, and where a token for a new resource comes from: see principals.py for the way there."""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Any

from mppool.credentials.loading import adapter
from mppool.credentials.secrets import digest_of
from mppool.credentials.token_struct import NEAR_EXPIRY_S
from mppool.errors import ConfigurationError, OpenFailed
from mppool.logs import Log
from mppool.redaction import forget_locals
from mppool.worker.inventory import NEVER

if TYPE_CHECKING:
    from mppool.credentials.token_struct import TokenInfo
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.own_pool import OwnPool

log = Log("mppool")


class Principal:
    """For whom a checkout is: the key of its resources, and where a token for a new one comes from.

    identity: None where no token and no identity is involved. given: whether the checkout named it.
    credential: None where the recipe authenticates by itself.
    fetched: a token that was fetched for this checkout already, and is used for its opening.
    deadline: of the checkout (monotonic), for finding out whether a session's token is still the right one.
    """

    __slots__ = ("credential", "deadline", "fetched", "given", "identity", "key", "local")

    def __init__(
        self,
        local: OwnPool,
        key: str,
        identity: str | None,
        credential: Any,
        fetched: TokenInfo | None = None,
        *,
        given: bool = False,
    ) -> None:
        self.local = local
        self.key = key
        self.identity = identity
        self.credential = credential
        self.fetched = fetched
        self.given = given
        self.deadline: float | None = None

    def token(self, timeout: float | None, unlike: str = "") -> TokenInfo | None:
        """The token for an opening; None: none is wanted. Raises what the credential raises.

        unlike: digest of the token of a session that is near its end.
        """
        scope = self.local.recipe.token_scope
        if self.credential is None or scope is None:
            return None
        token = self.fetched
        if token is None:
            identity = self.identity if self.given else None
            token = fetch(self.local, self.credential, scope, identity, timeout, unlike)
            if not self.given:
                self._check_owner(token)
        if self.given or not (self.identity or "").startswith("tok:"):
            self.fetched = None  # a second opening may be much later
        return token

    def _check_owner(self, token: TokenInfo) -> None:
        """The key was found out before the token was fetched: it must still be the same one's."""
        identity = self.identity or ""
        if identity.startswith("tok:"):
            now = adapter().identity_from(token)
        else:
            now = adapter().identity_of(self.credential) or ""
        if now != identity:
            raise OpenFailed(
                f"pool {self.local.name!r}: the credential has come to stand for somebody else, or has another "
                "token, while this checkout was under way; check out again"
            )

    def note(self, entry: PoolEntry, token: TokenInfo) -> None:
        """The resource was opened with this token, or has been found to go on with it."""
        entry.token = digest_of(token)
        if self.local.identities.needs_no_look(self):
            return
        entry.ask_at = -NEVER if token.expires_on is None else token.expires_on - NEAR_EXPIRY_S

    def refused(self, token: TokenInfo) -> None:
        """A login with this token was refused: the next one is tried with another, if the issuer has one."""
        scope = self.local.recipe.token_scope
        self.fetched = None
        if self.credential is not None and scope is not None:
            identity = self.identity if self.given else None
            member = self.local.member
            adapter().spurned(member, self.credential, scope, identity, digest_of(token))

    def still_holds(self, entry: PoolEntry) -> bool:
        """Whether the token of a session is still the one that its identity gets. Called near its end.

        False: there is another one, with which the next opening is done. Raises OpenFailed if the token
        has ended and no other can be had; while it is valid that is nobody's problem.
        """
        left = None if self.deadline is None else max(0.0, self.deadline - monotonic())
        insists = self.local.identities.may_insist(self.key)
        try:
            token = self.token(left, entry.token if insists else "")
        except Exception as error:
            if time() < entry.ask_at + NEAR_EXPIRY_S or entry.ask_at == -NEVER:
                log.warning("the session goes on with its own token, for %s", error)
                return True
            raise
        if token is None:
            return True
        if digest_of(token) == entry.token:
            self.note(entry, token)
            return True
        self.fetched = token
        return False


def fetch(
    local: OwnPool,
    credential: Any,
    scope: str,
    identity: str | None,
    timeout: float | None,
    unlike: str = "",
) -> TokenInfo:
    """What the credential gives. Raises OpenFailed, for what the credential raises; ConfigurationError.

    An issuer may repeat in its error what it was sent. Its text goes to logs, and to all who are refused
    because of it, so it is told without what could be a secret; then the error itself is not its cause.
    """
    try:
        loop = local.recipe.asks_in()
        return adapter().fetch(local.member, credential, scope, identity, timeout, unlike, loop)
    except (ConfigurationError, OpenFailed):
        raise
    except Exception as error:  # noqa: BLE001  # told to the caller; logged where the caller goes on without
        text, complete = adapter().told(error)
        forget_locals(error)
        failed = OpenFailed(
            f"pool {local.name!r}: no token could be fetched from a {type(credential).__name__}: {text}"
        )
        raise failed from (error if complete else None)

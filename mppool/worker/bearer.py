"""Whoever checks out, and where a token for a new resource comes from: see identities.py for the way there."""

from __future__ import annotations

import importlib
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

from mppool.core.tokens import digest_of as digest_of_text
from mppool.errors import ConfigurationError, OpenFailed
from mppool.logs import Log
from mppool.redaction import forget_locals
from mppool.worker.entry import NEVER

if TYPE_CHECKING:
    from mppool.worker.entry import Entry
    from mppool.worker.face import Face
    from mppool.worker.member import Member

log = Log("mppool")

NEAR_EXPIRY_S = 300.0
"""So long before its end a token is asked for anew, and compared."""


_BROKER = "mppool.azure.broker"


class Token(Protocol):
    """What `opening.token` is: mppool.azure.TokenInfo."""

    token_struct: bytes
    expires_on: float | None


class Broker(Protocol):
    """What is known of credentials; given by floor 5, which knows Azure's."""

    def check(self, credential: object) -> None:
        """Raises ConfigurationError for what is no token credential."""

    def identity_of(self, credential: Any) -> str | None:
        """Whom it stands for; None: only a token can tell, so fetch one, then ask again."""

    def is_brought(self, credential: Any) -> bool:
        """Whether it only holds a token that the application has brought, whose life is its own business."""

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two credentials stand for the same identity as far as anybody can tell."""

    def fetch(
        self,
        member: Member,
        credential: Any,
        scope: str,
        identity: str | None,
        timeout: float | None,
        unlike: str = "",
    ) -> Token:
        """A token; the one that all processes share, where the identity is known.

        identity: as the application names it; None: whatever the credential stands for.
        unlike: digest of a token that is near its end: another one is wanted, if the issuer has one.
        """

    def spurned(
        self, member: Member, credential: Any, scope: str, identity: str | None, token: str
    ) -> None:
        """A login with this token (its digest) was refused: another one is wanted, once in a while for all."""

    def told(self, error: Exception) -> tuple[str, bool]:
        """The text of a credential's error without what could be a secret, and whether nothing is left out."""

    def identity_from(self, token: Any) -> str:
        """The identity that only this token tells."""


_broker: Broker | None = None


def broker() -> Broker:
    """The broker, loaded on first use. Raises ConfigurationError where the extra is missing."""
    global _broker
    if _broker is None:
        try:
            _broker = importlib.import_module(_BROKER).BROKER
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"credentials need mppool's extra for Azure ({error}): pip install 'mppool[azure]'"
            ) from error
        assert _broker is not None
    return _broker


def digest_of(token: Token) -> str:
    """Tells the tokens of sessions apart without holding them."""
    return digest_of_text(secret_of(token))


def secret_of(token: Token | None) -> str:
    """The token as text; "" for none."""
    if token is None:
        return ""
    return token.token_struct[4:].decode("utf-16-le", errors="surrogatepass")


def repeats(error: BaseException, secret: str) -> bool:
    """Whether an error, or what it came of, says the secret."""
    seen: set[int] = set()
    one: BaseException | None = error
    while secret and one is not None and id(one) not in seen:
        seen.add(id(one))
        if any(secret in str(part) for part in one.args):
            return True
        one = one.__cause__ or one.__context__
    return False


class Bearer:
    """Whoever checks out: the key of his resources, and where a token for a new one comes from.

    identity: None where no token and no identity is involved. given: whether the checkout named it.
    credential: None where the recipe authenticates by itself.
    fetched: a token that was fetched for this checkout already, and is used for its opening.
    deadline: of the checkout (monotonic), for finding out whether a session's token is still the right one.
    """

    __slots__ = ("credential", "deadline", "face", "fetched", "given", "identity", "key")

    def __init__(
        self,
        face: Face,
        key: str,
        identity: str | None,
        credential: Any,
        fetched: Token | None = None,
        *,
        given: bool = False,
    ) -> None:
        self.face = face
        self.key = key
        self.identity = identity
        self.credential = credential
        self.fetched = fetched
        self.given = given
        self.deadline: float | None = None

    def token(self, timeout: float | None, unlike: str = "") -> Token | None:
        """The token for an opening; None: none is wanted. Raises what the credential raises.

        unlike: digest of the token of a session that is near its end.
        """
        scope = self.face.recipe.token_scope
        if self.credential is None or scope is None:
            return None
        token = self.fetched
        if token is None:
            identity = self.identity if self.given else None
            token = fetch(self.face, self.credential, scope, identity, timeout, unlike)
            if not self.given:
                self._check_owner(token)
        if self.given or not (self.identity or "").startswith("tok:"):
            self.fetched = None  # a second opening may be much later
        return token

    def _check_owner(self, token: Token) -> None:
        """The key was found out before the token was fetched: it must still be the same one's."""
        identity = self.identity or ""
        if identity.startswith("tok:"):
            now = broker().identity_from(token)
        else:
            now = broker().identity_of(self.credential) or ""
        if now != identity:
            raise OpenFailed(
                f"pool {self.face.name!r}: the credential has come to stand for somebody else, or has another "
                "token, while this checkout was under way; check out again"
            )

    def note(self, entry: Entry, token: Token) -> None:
        """The resource was opened with this token, or has been found to go on with it."""
        entry.token = digest_of(token)
        if self.face.identities.needs_no_look(self):
            return
        entry.ask_at = -NEVER if token.expires_on is None else token.expires_on - NEAR_EXPIRY_S

    def refused(self, token: Token) -> None:
        """A login with this token was refused: the next one is tried with another, if the issuer has one."""
        scope = self.face.recipe.token_scope
        self.fetched = None
        if self.credential is not None and scope is not None:
            identity = self.identity if self.given else None
            member = self.face.member
            broker().spurned(member, self.credential, scope, identity, digest_of(token))

    def still_holds(self, entry: Entry) -> bool:
        """Whether the token of a session is still the one that its identity gets. Called near its end.

        False: there is another one, with which the next opening is done. Raises OpenFailed if the token
        has ended and no other can be had; while it is valid that is nobody's problem.
        """
        left = None if self.deadline is None else max(0.0, self.deadline - monotonic())
        insists = self.face.identities.may_insist(self.key)
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
    face: Face,
    credential: Any,
    scope: str,
    identity: str | None,
    timeout: float | None,
    unlike: str = "",
) -> Token:
    """What the broker fetches. Raises OpenFailed, for what the credential raises; ConfigurationError.

    An issuer may repeat in its error what it was sent. Its text goes to logs, and to all who are refused
    because of it, so it is told without what could be a secret; then the error itself is not its cause.
    """
    try:
        return broker().fetch(face.member, credential, scope, identity, timeout, unlike)
    except (ConfigurationError, OpenFailed):
        raise
    except Exception as error:  # noqa: BLE001  # told to the caller; logged by whoever goes on without
        text, complete = broker().told(error)
        forget_locals(error)
        failed = OpenFailed(
            f"pool {face.name!r}: no token can be had from a {type(credential).__name__}: {text}"
        )
        raise failed from (error if complete else None)

"""For whom a checkout is: which resources it may get, and how a token for a new one is come by.

    checkout(identity=..., credential=...)
        |  identity= names the key; else the checkout's credential does, else the recipe's
        v
    Bearer: the key, and the credential      --- a resource of this key lies on the shelf --->  no token at all
        |  nothing on the shelf, or the token of what lies there is near its end
        v
    Broker (mppool.azure): a token, shared by all processes where the identity is known without it

A credential whose identity only a token can tell is asked for one at every checkout: the key is the token.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType, ref

from mppool.core.events import Declare
from mppool.core.tokens import digest_of as digest_of_text
from mppool.errors import ConfigurationError, OpenFailed
from mppool.worker.entry import NEVER

if TYPE_CHECKING:
    from mppool.worker.entry import Entry
    from mppool.worker.face import Face
    from mppool.worker.member import Member

log = logging.getLogger("mppool")

NEAR_EXPIRY_S = 300.0
"""So long before its end a token is asked for anew, and compared."""

INSIST_AGAIN_S = 30.0
"""An issuer that gave the same token, or none, is asked again after so long (azure-identity's retry delay)."""

_MANY = 1024

_BROKER = "mppool.azure.broker"

_UNKNOWN = "?"
"""Stands for the recipe's own identity in its declaration until a token has told it; never a key in use."""


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
    return digest_of_text(token.token_struct[4:].decode("utf-16-le", errors="surrogatepass"))


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
            member = self.face.member
            identity = self.identity if self.given else None
            token = broker().fetch(member, self.credential, scope, identity, timeout, unlike)
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
                log.warning(
                    "pool %r: no newer token can be had, the session goes on with its own: %s",
                    self.face.name,
                    _named(error),
                )
                return True
            raise _no_token(self.face, error) from error
        if token is None:
            return True
        if digest_of(token) == entry.token:
            self.note(entry, token)
            return True
        self.fetched = token
        return False


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _no_token(face: Face, error: Exception) -> OpenFailed:
    return OpenFailed(f"pool {face.name!r}: no token can be had: {_named(error)}")


class Known:
    """What is remembered of a credential while it lives, without keeping it alive.

    watch: leads to the credential, where it is one's. pop: takes from the shelf of its key, as far as there was one when this
        was last looked at; what it does not find is found by the long way, which looks again.
    """

    __slots__ = ("identity", "key", "pop", "watch")

    def __init__(
        self, key: str, identity: str, pop: Callable[[], Entry], watch: Callable[[], Any]
    ) -> None:
        self.key = key
        self.identity = identity
        self.pop = pop
        self.watch = watch


def _never() -> None:
    """Watches nothing."""


class Identities:
    """The credentials of one pool in one process.

    known: by weak references; a look-up takes no lock. Whoever looks sees to it that what he has found is
        of this very credential: others may compare equal to it.
    """

    def __init__(self, face: Face) -> None:
        self._face = face
        self.credential = face.recipe.credential
        self.known: dict[ReferenceType[Any], Known] = {}
        self._named: dict[str, Known] = {}
        self._insisted: dict[str, float] = {}
        self._checked: set[type] = set()
        self.own_is_known = True
        if self.credential is not None:
            broker().check(self.credential)
            if face.recipe.token_scope is None:
                raise ConfigurationError(
                    f"pool {face.name!r}: its recipe has a credential and names no token_scope; name the "
                    "scope of the token that open() wants"
                )

    def renew(self) -> None:
        """The shelves are new: at the declaration, and in a forked child."""
        self.known = {}
        self._named = {}

    def declared_key(self) -> str:
        """The key that `min_size` belongs to, as far as it can be known without a token."""
        face = self._face
        if self.credential is None:
            return face.key_for(None)
        identity = self._identity_without_token(self.credential)
        self.own_is_known = identity is not None and not identity.startswith("acct:")
        return face.key_for(identity or _UNKNOWN)

    def may_insist(self, key: str) -> bool:
        """Whether the issuer is to be asked for another token now, and not only the cache that all share.

        Once in a while: an issuer that gives the same token until its end would be asked at each checkout.
        """
        now = monotonic()
        if now < self._insisted.get(key, -NEVER) + INSIST_AGAIN_S:
            return False
        if len(self._insisted) >= _MANY:
            self._insisted.clear()
        self._insisted[key] = now
        return True

    def is_own(self, credential: Any) -> bool:
        """Whether another declaration of the pool means the same identity."""
        own = self.credential
        if own is None or credential is None:
            return own is credential
        return own is credential or broker().is_same(own, credential)

    # --- who asks ----------------------------------------------------------------------------------------

    def own(self, timeout: float | None) -> Bearer | None:
        """Of a checkout that names nobody; None: no credential is involved."""
        if self.credential is None:
            return None
        bearer = self._of_credential(self.credential, timeout)
        if bearer.key != self._face.default_key:
            self._own_key_is(bearer.key)
        return bearer

    def own_quickly(self, deadline: float | None) -> Bearer | None:
        """The same, for a resource that lay on the shelf of the own key."""
        if self.credential is None:
            return None
        key = self._face.default_key
        bearer = Bearer(self._face, key, key.partition("\0")[2], self.credential)
        bearer.deadline = deadline
        return bearer

    def of(self, identity: str | None, credential: Any, timeout: float | None) -> Bearer | None:
        """Of a checkout with these arguments. Raises ConfigurationError, or OpenFailed for a missing token."""
        face = self._face
        if credential is not None and type(credential) not in self._checked:
            broker().check(credential)
            if face.recipe.token_scope is None:
                raise ConfigurationError(
                    f"pool {face.name!r}: checkout(credential=...) wants a recipe that names a token_scope, "
                    "for instance OdbcRecipe; use identity= where the recipe authenticates by itself"
                )
            self._checked.add(type(credential))
        if identity is None:
            return (
                self.own(timeout)
                if credential is None
                else self._of_credential(credential, timeout)
            )
        if not isinstance(identity, str) or not identity or "\0" in identity:
            raise ConfigurationError(
                f"pool {face.name!r}: identity={identity!r:.80} is not allowed; give a text, not empty, "
                "without NUL"
            )
        source = self.credential if credential is None else credential
        key = face.key_for(identity)
        if key in face.shelves:
            self._named[identity] = Known(key, identity, face.popper_of(key), _never)
        return Bearer(face, key, identity, source, given=True)

    def _of_credential(self, credential: Any, timeout: float | None) -> Bearer:
        face = self._face
        known = self.recall(credential)
        if known is not None:
            return Bearer(face, known.key, known.identity, credential)
        identity = self._identity_without_token(credential)
        token: Token | None = None
        if identity is None:
            scope = face.recipe.token_scope
            assert scope is not None
            try:
                token = broker().fetch(face.member, credential, scope, None, timeout)
            except (ConfigurationError, OpenFailed):
                raise
            except Exception as error:
                raise _no_token(face, error) from error
            identity = broker().identity_of(credential)
            if identity is None:
                identity = broker().identity_from(token)
                if not broker().is_brought(credential):
                    return Bearer(face, face.key_for(identity), identity, credential, token)
        bearer = Bearer(face, face.key_for(identity), identity, credential, token)
        self._remember(credential, bearer)
        return bearer

    def _identity_without_token(self, credential: Any) -> str | None:
        if broker().is_brought(credential):
            token = broker().fetch(self._face.member, credential, "", None, None)
            return broker().identity_from(token)
        return broker().identity_of(credential)

    def needs_no_look(self, bearer: Bearer) -> bool:
        """Whether the session's token is never compared: its life is the application's business, or the key."""
        return (bearer.identity or "").startswith("tok:") or broker().is_brought(bearer.credential)

    # --- what is remembered ------------------------------------------------------------------------------

    def recall(self, credential: Any) -> Known | None:
        """What is remembered of this very credential.

        Not the account that has signed in to one: another may.
        """
        try:
            known = self.known.get(ref(credential))
        except TypeError:  # it cannot be referred to weakly, or hashed: it is looked at every time
            return None
        if known is None or known.watch() is not credential:
            return None  # another one, which compares equal
        known.pop = self._face.popper_of(known.key)
        return known

    def recall_name(self, identity: str, credential: Any) -> Known | None:
        """What is remembered of a name that a checkout gave, while there is something of that identity."""
        if type(identity) is not str or not (
            credential is None or type(credential) in self._checked
        ):
            return None
        return self._named.get(identity)

    def forget_name(self, key: str) -> None:
        """The sub-pool of this key is empty."""
        self._named.pop(key.partition("\0")[2], None)

    def _remember(self, credential: Any, bearer: Bearer) -> None:
        assert bearer.identity is not None
        if bearer.identity.startswith("acct:"):
            return
        table = self.known
        try:
            reference = ref(credential)
            if reference in table:
                return
        except TypeError:
            return
        # Runs at any instruction, in any thread: one atomic step, for the hash is kept in the reference.
        watch = ref(credential, lambda gone: table.pop(reference, None))
        pop = self._face.popper_of(bearer.key)
        table[reference] = Known(bearer.key, bearer.identity, pop, watch)

    def _own_key_is(self, key: str) -> None:
        """A token has told whom the recipe's credential stands for: `min_size` belongs to that from now on."""
        face = self._face
        face.default_key = key
        # An account that has signed in is looked at each time: another one may.
        self.own_is_known = self.recall(self.credential) is not None
        face.pop = face.own_popper()
        if face.member.holdings.session is not None:
            face.member.tell(Declare(face.declaration()))

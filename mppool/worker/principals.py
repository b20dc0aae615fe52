"""For whom a checkout is: which resources it may get, and how it gets a token for a new one.

    checkout(identity=..., credential=...)
        |  identity= names the key; else the checkout's credential does, else the recipe's
        v
    Principal: the key, and the credential      --- a resource of this key lies on the shelf --->  no token at all
        |  nothing on the shelf, or the token of what lies there is near its end
        v
    CredentialAdapter: a token, shared by all processes where the identity is known without it

A credential whose identity only a token can tell is asked for one at every checkout: the key is the token.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from mppool.core.events import Declare
from mppool.credentials.identity import checked_identity
from mppool.credentials.loading import adapter
from mppool.errors import ConfigurationError
from mppool.worker.inventory import NEVER
from mppool.worker.principal import Principal, fetch

if TYPE_CHECKING:
    from mppool.credentials.token_struct import TokenInfo
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.own_pool import OwnPool

INSIST_AGAIN_S = 30.0
"""An issuer that gave the same token, or none, is asked again after so long (azure-identity's retry delay)."""

_MANY = 1024

_UNKNOWN = "?"
"""Stands for the recipe's own identity in its declaration until a token has told it; never a key in use."""


class Known:
    """What is remembered of a credential while it lives, without keeping it alive.

    watch: leads to the credential, where it is one's. pop: takes from the shelf of its key, as far as there was one when this
        was last looked at; what it does not find is found by the long way, which looks again.
    """

    __slots__ = ("identity", "key", "pop", "watch")

    def __init__(
        self, key: str, identity: str, pop: Callable[[], PoolEntry], watch: Callable[[], Any]
    ) -> None:
        self.key = key
        self.identity = identity
        self.pop = pop
        self.watch = watch


def _never() -> None:
    """Watches nothing."""


class Principals:
    """The credentials of one pool in one process.

    known: by weak references; a look-up takes no lock. Every look-up checks that it has found this very
        credential: others may compare equal to it.
    """

    def __init__(self, local: OwnPool) -> None:
        self._local = local
        self.credential = local.recipe.credential
        self.known: dict[ReferenceType[Any], Known] = {}
        self._named: dict[str, Known] = {}
        self._insisted: dict[str, float] = {}
        self._checked: set[type] = set()
        self.own_is_known = True
        if self.credential is not None:
            adapter().check(self.credential, asynchronous=local.recipe.belongs_to_loop)
            if local.recipe.token_scope is None:
                raise ConfigurationError(
                    f"pool {local.name!r}: its recipe has a credential and names no token_scope; name the "
                    "scope of the token that open() wants"
                )

    def renew(self) -> None:
        """The shelves are new: at the declaration, and in a forked child."""
        self.known = {}
        self._named = {}

    def declared_key(self) -> str:
        """The key that `min_size` belongs to, as far as it can be known without a token."""
        local = self._local
        if self.credential is None:
            return local.key_for(None)
        identity = self._identity_without_token(self.credential)
        self.own_is_known = identity is not None and not identity.startswith("acct:")
        return local.key_for(identity or _UNKNOWN)

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
        return own is credential or adapter().is_same(own, credential)

    # --- checkouts ---------------------------------------------------------------------------------------

    def own(self, timeout: float | None) -> Principal | None:
        """Of a checkout that names nobody; None: no credential is involved."""
        if self.credential is None:
            return None
        principal = self._of_credential(self.credential, timeout)
        if principal.key != self._local.default_key:
            self._own_key_is(principal.key)
        return principal

    def own_quickly(self, deadline: float | None) -> Principal | None:
        """The same, for a resource that lay on the shelf of the own key."""
        if self.credential is None:
            return None
        key = self._local.default_key
        principal = Principal(self._local, key, key.partition("\0")[2], self.credential)
        principal.deadline = deadline
        return principal

    def of(self, identity: str | None, credential: Any, timeout: float | None) -> Principal | None:
        """Of a checkout with these arguments. Raises ConfigurationError, or OpenFailed for a missing token."""
        local = self._local
        if credential is not None and type(credential) not in self._checked:
            if local.recipe.token_scope is None:
                raise ConfigurationError(
                    f"pool {local.name!r}: checkout(credential=...) wants a recipe that names a token_scope, "
                    "for instance OdbcRecipe; use identity= where the recipe authenticates by itself"
                )
            adapter().check(credential, asynchronous=local.recipe.belongs_to_loop)
            self._checked.add(type(credential))
        if identity is None:
            return (
                self.own(timeout)
                if credential is None
                else self._of_credential(credential, timeout)
            )
        checked_identity(identity, f"pool {local.name!r}: ")
        source = self.credential if credential is None else credential
        key = local.key_for(identity)
        if key in local.idle.shelves.by_key:
            self._named[identity] = Known(key, identity, local.idle.shelves.popper(key), _never)
        return Principal(local, key, identity, source, given=True)

    def _of_credential(self, credential: Any, timeout: float | None) -> Principal:
        local = self._local
        known = self.recall(credential)
        if known is not None:
            return Principal(local, known.key, known.identity, credential)
        identity = self._identity_without_token(credential)
        token: TokenInfo | None = None
        if identity is None:
            scope = local.recipe.token_scope
            assert scope is not None
            token = fetch(local, credential, scope, None, timeout)
            identity = adapter().identity_of(credential)
            if identity is None:
                identity = adapter().identity_from(token)
                if not adapter().is_brought(credential):
                    return Principal(local, local.key_for(identity), identity, credential, token)
        principal = Principal(local, local.key_for(identity), identity, credential, token)
        self._remember(credential, principal)
        return principal

    def _identity_without_token(self, credential: Any) -> str | None:
        if adapter().is_brought(credential):
            token = adapter().fetch(self._local.member, credential, "", None, None)
            return adapter().identity_from(token)
        return adapter().identity_of(credential)

    def needs_no_look(self, principal: Principal) -> bool:
        """Whether the session's token is never compared: its life is the application's business, or the key."""
        return (principal.identity or "").startswith("tok:") or adapter().is_brought(
            principal.credential
        )

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
        known.pop = self._local.idle.shelves.popper(known.key)
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

    def _remember(self, credential: Any, principal: Principal) -> None:
        assert principal.identity is not None
        if principal.identity.startswith("acct:"):
            return
        table = self.known
        try:
            reference = ref(credential)
            if reference in table:
                return
        except TypeError:
            return
        # Runs at any instruction, in any thread: one atomic step, because the hash is kept in the reference.
        watch = ref(credential, lambda gone: table.pop(reference, None))
        pop = self._local.idle.shelves.popper(principal.key)
        table[reference] = Known(principal.key, principal.identity, pop, watch)

    def _own_key_is(self, key: str) -> None:
        """A token has told whom the recipe's credential stands for: `min_size` belongs to that from now on."""
        local = self._local
        # An account that has signed in is looked at each time: another one may.
        self.own_is_known = self.recall(self.credential) is not None
        local.own_key_is(key)
        if local.member.inventory.session is not None:
            local.member.tell(Declare(local.declaration()))

"""The words of the token cache, and what a token's life means. The books are in `token_books`.

Tokens live in memory only. The books go by durations; the instants in `Issued` are of the machine's wall
clock, are only passed on, and let each process find out that the machine was suspended.
"""

from __future__ import annotations

import msgspec

from mppool.core.decisions import Decision, Grant, Queued, Refuse
from mppool.core.events import Event
from mppool.ids import Ticket, sha256_of

USABLE_S = 10.0
"""A token with less left is not given to anybody any more; of very short ones half the life counts."""

SHORTEST_LIFE_S = 1.0
"""A token that is said to have expired already is used for half of this all the same, so that an issuer that is wrong
about expiry is not asked by every call."""

LONGEST_LIFE_S = 366 * 86400.0

REFRESH_AHEAD_S = 300.0
"""A token is refreshed so long before its end, or at half its life if that is later (azure-identity's offset)."""

REFRESH_AGAIN_S = 30.0
"""Pause between two refreshes of a valid token (azure-identity's retry delay)."""

FETCH_PATIENCE_S = 30.0
"""An appointed process that has brought nothing by then is replaced, unless it asked for more patience."""


class TokenKey(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What makes two tokens interchangeable. `identity` is a stable one, shared by all processes."""

    identity: str
    scopes: tuple[str, ...]
    tenant: str
    cae: bool


class Issued(msgspec.Struct, frozen=True, array_like=True):
    """A token as it was issued. The instants are seconds since 1970 (wall clock), and opaque to the books.

    usable_until: of a machine that was suspended the monotonic clocks know too little.
    """

    token: str
    expires_on: float
    refresh_on: float | None
    usable_until: float

    def __repr__(self) -> str:
        return f"Issued(<hidden>, expires_on={self.expires_on}, refresh_on={self.refresh_on})"


class WantToken(Event, frozen=True, tag=True):
    """A process has no token that it may use. Answered at once: TokenGiven, FetchToken, TokenQueued or
    TokenRefused.

    claims: of a claims challenge: the token that is cached does not satisfy it.
    bad: digest of the token that the challenge refused, or that the caller found expired; a cached token with
        another digest is newer and is given.
    near: the bad token is valid, but near its end: where the issuer has just given it again, it will do.
    patience: seconds that a fetch by this asker may take before somebody else is appointed.
    """

    key: TokenKey
    ticket: Ticket
    timeout: float | None
    claims: str = ""
    bad: str = ""
    patience: float = FETCH_PATIENCE_S
    near: bool = False


class TokenFetched(Event, frozen=True, tag=True):
    """The appointed process brings a token. refresh_in: None where the issuer says nothing."""

    fetch: int
    key: TokenKey
    issued: Issued
    expires_in: float
    refresh_in: float | None


class TokenFailed(Event, frozen=True, tag=True):
    """The appointed process could not fetch. `error` is text without secrets.

    retry_in: seconds for which not to try again; 0: the thread was interrupted, say, and the next one who waits
        is appointed.
    everybody: the issuer said so, and nobody is to try again before; else only this process is not.
    """

    fetch: int
    key: TokenKey
    error: str
    retry_in: float
    everybody: bool = True


class TokenSpurned(Event, frozen=True, tag=True):
    """What the token is for has refused it, although it is valid by its time.

    token: its digest. Once in a while another one is fetched for all.
    """

    key: TokenKey
    token: str


class ForgetTokens(Event, frozen=True, tag=True):
    """A command: no process uses the tokens of this identity any more. None: of all."""

    identity: str | None


class TokenGiven(Decision, frozen=True, tag=True):
    """A valid token.

    number: of the fetch that brought it; a higher one is newer.
    refresh_in: seconds after which somebody is to fetch the next one; 0: it is time.
    duty: number of the fetch that this process is appointed to do in the background, or 0.
    """

    ticket: Ticket
    key: TokenKey
    issued: Issued
    number: int
    refresh_in: float
    duty: int


class FetchToken(Decision, frozen=True, tag=True):
    """There is no valid token, and the asker is appointed to fetch one.

    insist: what the credential has in a cache of its own will not do.
    """

    ticket: Ticket
    key: TokenKey
    fetch: int
    claims: str
    insist: bool = False


class TokenQueued(Decision, frozen=True, tag=True):
    """Another one is fetching; an answer follows on the errand channel."""

    ticket: Ticket


class TokenRefused(Decision, frozen=True, tag=True):
    """No token: the last fetch failed, and is not to be tried again for `retry_in` seconds."""

    ticket: Ticket
    text: str
    retry_in: float


class TokensForgotten(Decision, frozen=True, tag=True):
    """Copies of these tokens are not used any more: what was fetched up to the number `fetch`.

    identity: None: of all. token: digest of the only one that is meant, or "".
    """

    identity: str | None
    fetch: int
    token: str = ""


class TokenCost(Event, frozen=True, tag=True):
    """A token was asked for that is not shared between processes, and it took a while.

    kind: the class of the credential.
    """

    kind: str
    seconds: float


TokenEvent = WantToken | TokenFetched | TokenFailed | TokenSpurned | ForgetTokens | TokenCost
TokenDecision = TokenGiven | FetchToken | TokenQueued | TokenRefused | TokensForgotten

_ANSWERS = frozenset((Grant, Queued, Refuse, TokenGiven, FetchToken, TokenQueued, TokenRefused))


def is_answer(decision: Decision, ticket: Ticket) -> bool:
    """Whether this is the direct answer to the Checkout or WantToken with this ticket."""
    return type(decision) in _ANSWERS and decision.ticket == ticket  # type: ignore[attr-defined]


def digest_of(token: str) -> str:
    """Tells tokens apart without showing them."""
    return sha256_of(token.encode())[:32]


def life_of(expires_in: float) -> float:
    """For how long a token is taken to be valid; its issuer may say nonsense."""
    return min(max(expires_in, SHORTEST_LIFE_S), LONGEST_LIFE_S)


def margin_of(life: float) -> float:
    """So long before its end a token is not given to anybody any more."""
    return min(USABLE_S, life / 2)


def refresh_in(expires_in: float, said: float | None) -> float:
    """After how many seconds a token is to be refreshed, from its life and what its issuer said."""
    life = life_of(expires_in)
    if said is not None and 0 <= said < life:
        return max(said, min(REFRESH_AGAIN_S, life / 2))
    return max(life - REFRESH_AHEAD_S, life / 2)

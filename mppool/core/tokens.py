"""The token cache: one fetch per key over all processes.

             WantToken, nothing valid          TokenFetched
    (none) ---------------------------> fetching ----------> fresh
                 one asker is appointed,   |                   | its refresh time has come
                 the others are queued     | TokenFailed       v
                                           v                 ageing: everybody gets the valid token, and one
                                        failed: refused       |      asker is appointed to fetch the next
                                        until `retry_at`      v
                                                            fetching, with a valid token meanwhile

While a token is valid a failed fetch is nobody's problem: it is tried again later. An appointed process that
dies, is detached, or takes longer than `FETCH_PATIENCE_S` is replaced by the next asker; what it still
brings is taken if it is newer. Tokens live in memory only. Durations cross the wire, never instants.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.core.decisions import Decision, Grant, Queued, Refuse
from mppool.core.events import Event
from mppool.ids import ProcessId, Ticket

if TYPE_CHECKING:
    from mppool.core.pool import Surroundings

USABLE_S = 10.0
"""A token with less left is not given to anybody any more."""

REFRESH_AHEAD_S = 300.0
"""A token is refreshed so long before its end, or at half its life if that is later (azure-identity's offset)."""

FETCH_PATIENCE_S = 30.0
"""An appointed process that has brought nothing by then is replaced."""

LONGEST_RETRY_S = 3600.0
KEPT_UNUSED_S = 3600.0
"""An entry without a valid token is forgotten after so long."""


class TokenKey(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What makes two tokens interchangeable. `identity` is a stable one, shared by all processes."""

    identity: str
    scopes: tuple[str, ...]
    tenant: str
    cae: bool


class WantToken(Event, frozen=True, tag=True):
    """A process has no token that it may use. Answered at once: TokenGiven, FetchToken, TokenQueued or
    TokenRefused.

    claims: of a claims challenge: the token that is cached does not satisfy it.
    bad: digest of the token that the challenge refused, or that the caller found expired; a cached token with
        another digest is newer and is given.
    """

    key: TokenKey
    ticket: Ticket
    timeout: float | None
    claims: str = ""
    bad: str = ""


class TokenFetched(Event, frozen=True, tag=True):
    """The appointed process brings a token. refresh_in: None where the issuer says nothing."""

    fetch: int
    key: TokenKey
    token: str
    expires_in: float
    refresh_in: float | None


class TokenFailed(Event, frozen=True, tag=True):
    """The appointed process could not fetch. `error` is text without secrets."""

    fetch: int
    key: TokenKey
    error: str
    retry_in: float


class TokenGiven(Decision, frozen=True, tag=True):
    """A valid token. duty: number of the fetch that this process is appointed to do in the background, or 0."""

    ticket: Ticket
    key: TokenKey
    token: str
    expires_in: float
    refresh_in: float
    duty: int


class FetchToken(Decision, frozen=True, tag=True):
    """There is no valid token, and the asker is appointed to fetch one."""

    ticket: Ticket
    key: TokenKey
    fetch: int
    claims: str


class TokenQueued(Decision, frozen=True, tag=True):
    """Another one is fetching; an answer follows on the errand channel."""

    ticket: Ticket


class TokenRefused(Decision, frozen=True, tag=True):
    """No token: the last fetch failed, and is not to be tried again for `retry_in` seconds."""

    ticket: Ticket
    text: str
    retry_in: float


ANSWERS = (Grant, Queued, Refuse, TokenGiven, FetchToken, TokenQueued, TokenRefused)
"""What may be the direct answer to a Checkout or WantToken: the one with its ticket."""

TokenEvent = WantToken | TokenFetched | TokenFailed
TokenDecision = TokenGiven | FetchToken | TokenQueued | TokenRefused


def digest_of(token: str) -> str:
    """Tells tokens apart without showing them."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


class _Fetch:
    """Who fetches, and until when he is believed to."""

    __slots__ = ("claims", "number", "process", "ticket", "until")

    def __init__(
        self, number: int, process: ProcessId, ticket: Ticket, claims: str, until: float
    ) -> None:
        self.number = number
        self.process = process
        self.ticket = ticket
        self.claims = claims
        self.until = until


class _Asker:
    __slots__ = ("claims", "deadline")

    def __init__(self, claims: str, deadline: float) -> None:
        self.claims = claims
        self.deadline = deadline


class _Entry:
    """What is known of one key. Instants are of the server's monotonic clock."""

    __slots__ = (
        "asked_at",
        "digest",
        "error",
        "expires_at",
        "fetch",
        "queue",
        "refresh_at",
        "retry_at",
        "token",
    )

    def __init__(self) -> None:
        self.token = ""
        self.digest = ""
        self.expires_at = -math.inf
        self.refresh_at = -math.inf
        self.asked_at = -math.inf
        self.error = ""
        self.retry_at = -math.inf
        self.fetch: _Fetch | None = None
        self.queue: OrderedDict[tuple[ProcessId, Ticket], _Asker] = OrderedDict()

    def is_usable(self, now: float) -> bool:
        return now < self.expires_at - USABLE_S


class TokenBooks:
    """All tokens of one server. Told the time and what happened; decisions go to `around.out`."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._entries: dict[TokenKey, _Entry] = {}
        self._fetches = 0

    def want(self, process: ProcessId, event: WantToken, now: float) -> None:
        """A process needs a token."""
        entry = self._entries.setdefault(event.key, _Entry())
        entry.asked_at = now
        refused = event.bad == entry.digest and bool(event.bad)
        if entry.is_usable(now) and not refused and not (event.claims and not event.bad):
            self._give(process, event.ticket, event.key, entry, now)
        elif entry.fetch is not None:
            deadline = math.inf if event.timeout is None else now + event.timeout
            entry.queue[process, event.ticket] = _Asker(event.claims, deadline)
            self._tell(process, TokenQueued(event.ticket))
        elif now < entry.retry_at:
            self._tell(process, TokenRefused(event.ticket, entry.error, entry.retry_at - now))
        else:
            fetch = self._appoint(entry, process, event.ticket, event.claims, now)
            self._tell(process, FetchToken(event.ticket, event.key, fetch, event.claims))

    def fetched(self, event: TokenFetched, now: float) -> None:
        """A token has come. One that ends no later than what is there says nothing new."""
        entry = self._entries.setdefault(event.key, _Entry())
        expires_at = now + event.expires_in
        fetch = entry.fetch
        if fetch is not None and fetch.number == event.fetch:
            entry.fetch = None
        elif expires_at <= entry.expires_at:
            return
        entry.token, entry.digest, entry.expires_at = (
            event.token,
            digest_of(event.token),
            expires_at,
        )
        entry.refresh_at = now + refresh_in(event.expires_in, event.refresh_in)
        entry.error, entry.retry_at = "", -math.inf
        self._answer_queue(event.key, entry, now)

    def failed(self, event: TokenFailed, now: float) -> None:
        """The appointed process failed. Whoever waits for a first token is told; the next may try later."""
        entry = self._entries.get(event.key)
        if entry is None or entry.fetch is None or entry.fetch.number != event.fetch:
            return
        entry.fetch = None
        pause = min(max(event.retry_in, 0.0), LONGEST_RETRY_S)
        entry.error, entry.retry_at = event.error, now + pause
        queue, entry.queue = entry.queue, OrderedDict()
        for process, ticket in queue:
            self._tell(process, TokenRefused(ticket, event.error, pause))

    def abandon(self, process: ProcessId, ticket: Ticket) -> None:
        """An asker waits no longer."""
        for entry in self._entries.values():
            entry.queue.pop((process, ticket), None)

    def call_ended(self, process: ProcessId, ticket: Ticket, now: float) -> None:
        """The asker was interrupted while he asked: he may not know that he was appointed."""
        self.abandon(process, ticket)
        for key, entry in self._entries.items():
            fetch = entry.fetch
            if fetch is not None and fetch.process == process and fetch.ticket == ticket:
                entry.fetch = None
                self._pass_on(key, entry, now)

    def gone(self, process: ProcessId, now: float) -> None:
        """A process died or was detached: it asks nothing any more, and fetches nothing."""
        for key, entry in self._entries.items():
            for asker in [asker for asker in entry.queue if asker[0] == process]:
                del entry.queue[asker]
            if entry.fetch is not None and entry.fetch.process == process:
                entry.fetch = None
                self._pass_on(key, entry, now)

    def tick(self, now: float) -> None:
        """Whoever fetches for too long is replaced; whoever waited long enough goes."""
        for key, entry in list(self._entries.items()):
            for asker, waiting in list(entry.queue.items()):
                if waiting.deadline <= now:
                    del entry.queue[asker]
                    self._tell(
                        asker[0], TokenRefused(asker[1], "no token came within the timeout", 0.0)
                    )
            if entry.fetch is not None and entry.fetch.until <= now:
                entry.fetch = None
                self._pass_on(key, entry, now)
            idle = entry.fetch is None and not entry.queue and not entry.is_usable(now)
            if idle and entry.retry_at <= now and entry.asked_at + KEPT_UNUSED_S <= now:
                del self._entries[key]

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity if never."""
        times = [entry.fetch.until for entry in self._entries.values() if entry.fetch is not None]
        times += [
            asker.deadline for entry in self._entries.values() for asker in entry.queue.values()
        ]
        return min(times, default=math.inf)

    def snapshot(self, now: float) -> list[dict[str, Any]]:
        """JSON-compatible, without tokens."""
        return [
            {
                "identity": key.identity,
                "scopes": list(key.scopes),
                "tenant": key.tenant or None,
                "cae": key.cae,
                "expires_in": entry.expires_at - now if entry.token else None,
                "state": _state(entry, now),
                "waiting": len(entry.queue),
            }
            for key, entry in self._entries.items()
        ]

    # --- how it is done ----------------------------------------------------------------------------------

    def _tell(self, process: ProcessId, decision: Decision) -> None:
        if process in self._around.attached:
            self._around.out.append((process, decision))

    def _appoint(
        self, entry: _Entry, process: ProcessId, ticket: Ticket, claims: str, now: float
    ) -> int:
        self._fetches += 1
        entry.fetch = _Fetch(self._fetches, process, ticket, claims, now + FETCH_PATIENCE_S)
        return self._fetches

    def _give(
        self, process: ProcessId, ticket: Ticket, key: TokenKey, entry: _Entry, now: float
    ) -> None:
        duty = 0
        if now >= entry.refresh_at and entry.fetch is None and now >= entry.retry_at:
            duty = self._appoint(entry, process, ticket, "", now)
        refresh = max(0.0, entry.refresh_at - now)
        given = TokenGiven(ticket, key, entry.token, entry.expires_at - now, refresh, duty)
        self._tell(process, given)

    def _answer_queue(self, key: TokenKey, entry: _Entry, now: float) -> None:
        queue, entry.queue = entry.queue, OrderedDict()
        for process, ticket in queue:
            self._give(process, ticket, key, entry, now)

    def _pass_on(self, key: TokenKey, entry: _Entry, now: float) -> None:
        """Nobody fetches any more: the next one who waits is appointed."""
        if not entry.queue:
            return
        (process, ticket), asker = entry.queue.popitem(last=False)
        fetch = self._appoint(entry, process, ticket, asker.claims, now)
        self._tell(process, FetchToken(ticket, key, fetch, asker.claims))


def refresh_in(expires_in: float, said: float | None) -> float:
    """After how many seconds a token is to be refreshed, from its life and what its issuer said."""
    if said is not None and 0 <= said < expires_in:
        return said
    return max(expires_in - REFRESH_AHEAD_S, expires_in / 2)


def _state(entry: _Entry, now: float) -> str:
    if entry.fetch is not None:
        return "fetching"
    if not entry.is_usable(now):
        return "failed" if now < entry.retry_at else "expired"
    return "ageing" if now >= entry.refresh_at else "fresh"

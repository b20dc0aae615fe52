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
dies, is detached, or takes longer than its patience is replaced by the next asker; what it still brings is
taken only where nothing newer has come. Fetches are numbered over all servers, so that newer is a comparison.

A failure counts for everybody only where the issuer said so. Otherwise it is the trouble of one process, which
pauses; the next asker of another process is appointed at once. When a process fetches whose last fetch failed,
nobody waits for it who has not failed: that one is appointed beside it.

Every asker in a queue waits for a fetch: an entry with a queue has a process that is appointed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from mppool.core.outbox import Outbox
from mppool.core.token_entry import LONGEST_RETRY_S, Asker, Fetch, TokenEntry
from mppool.core.tokens import (
    FetchToken,
    TokenCost,
    TokenEvent,
    TokenFailed,
    TokenFetched,
    TokenGiven,
    TokenKey,
    TokenQueued,
    TokenRefused,
    TokensForgotten,
    TokenSpurned,
    WantToken,
)
from mppool.ids import ProcessId, Ticket

TOKEN_EVENTS = (WantToken, TokenFetched, TokenFailed, TokenSpurned, TokenCost)
"""What `apply` takes in."""

SWEEP_S = 60.0
"""So often the entries that nobody needs are looked for."""


MOST_KINDS = 32
LONGEST_KIND = 100

MOST_FORGOTTEN = 256
"""Of so many identities it is remembered that their tokens are forgotten; with one more, the tokens of all are."""


class TokenBooks:
    """All tokens of one server. Told the time and what happened; decisions go to the outbox.

    epoch: of the server; the numbers of its fetches begin with it.
    """

    def __init__(self, outbox: Outbox, epoch: int) -> None:
        self._outbox = outbox
        self._entries: dict[TokenKey, TokenEntry] = {}
        # Those that somebody fetches: nobody waits for any other, and mostly there are none.
        self._fetching: dict[TokenKey, TokenEntry] = {}
        self._fetches = epoch << 32
        self._sweep_at = math.inf
        self.costs: dict[str, list[float]] = {}
        # What was forgotten last, by identity; None: of all.
        self._forgotten: dict[str | None, int] = {}

    def attached(self, process: ProcessId) -> None:
        """A process is here that may have missed what was said meanwhile."""
        for identity, number in self._forgotten.items():
            self._outbox.tell(process, TokensForgotten(identity, number))

    def apply(self, process: ProcessId, event: TokenEvent, now: float) -> None:
        """Take in what a process says of tokens."""
        if isinstance(event, WantToken):
            self.want(process, event, now)
        elif isinstance(event, TokenFetched):
            self.fetched(process, event, now)
        elif isinstance(event, TokenFailed):
            self.failed(process, event, now)
        elif isinstance(event, TokenSpurned):
            self.spurned(event, now)
        elif isinstance(event, TokenCost):
            self.cost(event)

    def want(self, process: ProcessId, event: WantToken, now: float) -> None:
        """A process needs a token."""
        entry = self._entries.setdefault(event.key, TokenEntry())
        entry.asked_at = now
        self._sweep_at = min(self._sweep_at, now + SWEEP_S)
        asker = Asker(process, event, now)
        if entry.suits(asker, now):
            self._give(asker, event.key, entry, now)
        elif entry.fetch is not None and not self._may_overtake(asker, entry):
            entry.queue[process, event.ticket] = asker
            self._outbox.tell(process, TokenQueued(event.ticket))
        elif now < entry.retry_at:
            self._outbox.tell(
                process, TokenRefused(event.ticket, entry.error, entry.retry_at - now)
            )
        elif (pause := entry.troubles.pause_of(process, now)) is not None:
            if entry.is_usable(now) and not (event.claims or event.bad):
                self._give(asker, event.key, entry, now)
            else:
                self._outbox.tell(process, TokenRefused(event.ticket, *pause))
        else:
            self._have_fetched(asker, event.key, entry, now)

    def fetched(self, process: ProcessId, event: TokenFetched, now: float) -> None:
        """A token has come, from the process that is appointed or from one that was."""
        if not math.isfinite(event.expires_in):
            text = "its expiry is not a number"
            self.failed(process, TokenFailed(event.fetch, event.key, text, 1.0), now)
            return
        entry = self._entries.setdefault(event.key, TokenEntry())
        entry.troubles.is_over(process)
        if event.fetch <= entry.floor:
            return  # it was on its way when all were forgotten
        fetch = entry.fetch
        if fetch is not None and fetch.number == event.fetch:
            self._end_fetch(event.key, entry)
            entry.take(event, fetch.claims, now)
        elif event.fetch > entry.number or not entry.is_usable(now):
            entry.take(event, "", now)
        self._answer_queue(event.key, entry, now)

    def failed(self, process: ProcessId, event: TokenFailed, now: float) -> None:
        """A process could not fetch. Either nobody tries again for a while, or this process does not."""
        entry = self._entries.get(event.key)
        if entry is None:
            return
        if not (event.retry_in > 0 and event.everybody):
            self._failed_alone(process, event, entry, now)
        elif entry.fetch is None:
            # It took too long, and nobody has come after it: what the issuer said counts for all.
            if event.fetch > entry.number:
                entry.refuse(event, now)
        elif entry.fetch.number == event.fetch:
            self._end_fetch(event.key, entry)
            pause = entry.refuse(event, now)
            queue, entry.queue = entry.queue, OrderedDict()
            for asker in queue.values():
                if entry.suits(asker, now):
                    self._give(asker, event.key, entry, now)
                else:
                    self._outbox.tell(asker.process, TokenRefused(asker.ticket, event.error, pause))

    def _failed_alone(
        self, process: ProcessId, event: TokenFailed, entry: TokenEntry, now: float
    ) -> None:
        """It is the trouble of this process: another one is appointed at once."""
        serious = event.retry_in > 0
        pause = min(event.retry_in, LONGEST_RETRY_S) if serious else 0.0
        entry.troubles.note(process, event.error, now + pause, serious)
        if entry.fetch is not None and entry.fetch.number == event.fetch:
            self._end_fetch(event.key, entry)
            if not self._pass_on(event.key, entry, now):
                entry.insist = False  # no process can fetch another one: what is here must do

    def spurned(self, event: TokenSpurned, now: float) -> None:
        """A valid token was refused where it was used: it may be revoked, or older than a right."""
        entry = self._entries.get(event.key)
        if entry is not None and entry.spurn(event.token, now):
            self._outbox.tell_all(TokensForgotten(event.key.identity, 0, event.token))

    def forget(self, identity: str | None, now: float) -> None:
        """No process uses the tokens of this identity (None: of all) any more."""
        if identity is None or len(self._forgotten) >= MOST_FORGOTTEN:
            self._forgotten, identity = {}, None
        self._forgotten[identity] = self._fetches
        for key, entry in list(self._entries.items()):
            if identity in (None, key.identity):
                entry.forget(self._fetches)
                self._end_fetch(key, entry)
                self._pass_on(key, entry, now)
        self._outbox.tell_all(TokensForgotten(identity, self._fetches))

    def abandon(self, process: ProcessId, ticket: Ticket) -> bool:
        """An asker waits no longer. Whether it did."""
        asked = [
            entry.queue.pop((process, ticket), None) is not None
            for entry in self._fetching.values()
        ]
        return any(asked)

    def call_ended(self, process: ProcessId, ticket: Ticket, now: float) -> bool:
        """The asker may have been interrupted while it asked, and not know that it was appointed. Whether it waited."""
        waited = self.abandon(process, ticket)
        for key, entry in list(self._fetching.items()):
            fetch = entry.fetch
            if fetch is not None and fetch.process == process and fetch.ticket == ticket:
                self._end_fetch(key, entry)
                self._pass_on(key, entry, now)
        return waited

    def gone(self, process: ProcessId, now: float) -> None:
        """A process died or was detached: it asks nothing any more, and fetches nothing."""
        for key, entry in list(self._fetching.items()):
            for asker in [asker for asker in entry.queue if asker[0] == process]:
                del entry.queue[asker]
            if entry.fetch is not None and entry.fetch.process == process:
                self._end_fetch(key, entry)
                self._pass_on(key, entry, now)

    def tick(self, now: float) -> None:
        """A process that fetches for too long is replaced; an asker that waited long enough goes."""
        for key, entry in list(self._fetching.items()):
            for asker in list(entry.queue.values()):
                if asker.deadline <= now:
                    del entry.queue[asker.process, asker.ticket]
                    text = "no token came within the timeout"
                    self._outbox.tell(asker.process, TokenRefused(asker.ticket, text, 0.0))
            if entry.fetch is not None and entry.fetch.until <= now:
                text = "fetching a token took too long in this process"
                entry.troubles.note(entry.fetch.process, text, now, serious=True)
                self._end_fetch(key, entry)
                self._pass_on(key, entry, now)
        if self._sweep_at <= now:
            self._sweep(now)

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity if never."""
        at = self._sweep_at
        for entry in self._fetching.values():
            assert entry.fetch is not None
            at = min(at, entry.fetch.until, *(asker.deadline for asker in entry.queue.values()))
        return at

    def cost(self, event: TokenCost) -> None:
        """A process has fetched for itself alone."""
        kind = event.kind if event.kind in self.costs or len(self.costs) < MOST_KINDS else "others"
        found = self.costs.setdefault(kind[:LONGEST_KIND], [0.0, 0.0])
        if 0 <= event.seconds < math.inf:
            found[0] += 1
            found[1] += event.seconds

    def costs_snapshot(self) -> list[dict[str, Any]]:
        """JSON-compatible: what the credentials cost whose tokens are not shared between processes."""
        return [
            {"kind": kind, "fetches": int(number), "seconds": seconds}
            for kind, (number, seconds) in self.costs.items()
        ]

    def snapshot(self, now: float) -> list[dict[str, Any]]:
        """JSON-compatible, without tokens."""
        return [
            {
                "identity": key.identity,
                "scopes": list(key.scopes),
                "tenant": key.tenant or None,
                "cae": key.cae,
                "expires_in": None if entry.issued is None else entry.expires_at - now,
                "state": _state(entry, now),
                "waiting": len(entry.queue),
            }
            for key, entry in self._entries.items()
        ]

    # --- how it is done ----------------------------------------------------------------------------------

    def _appoint(
        self, asker: Asker, claims: str, key: TokenKey, entry: TokenEntry, now: float
    ) -> int:
        self._fetches += 1
        entry.fetch = Fetch(self._fetches, asker, claims, now)
        self._fetching[key] = entry
        return self._fetches

    def _may_overtake(self, asker: Asker, entry: TokenEntry) -> bool:
        """Whether the asker need not wait for the process that fetches, since that one failed the last time."""
        assert entry.fetch is not None
        troubles = entry.troubles
        return troubles.is_suspect(entry.fetch.process) and not troubles.is_suspect(asker.process)

    def _end_fetch(self, key: TokenKey, entry: TokenEntry) -> None:
        """The caller sees to those who wait."""
        entry.fetch = None
        self._fetching.pop(key, None)

    def _have_fetched(self, asker: Asker, key: TokenKey, entry: TokenEntry, now: float) -> None:
        number = self._appoint(asker, asker.claims, key, entry, now)
        order = FetchToken(asker.ticket, key, number, asker.claims, entry.insist)
        self._outbox.tell(asker.process, order)

    def _give(self, asker: Asker, key: TokenKey, entry: TokenEntry, now: float) -> None:
        assert entry.issued is not None
        duty = 0
        if now >= entry.refresh_at and self._may_refresh(asker, entry, now):
            duty = self._appoint(asker, "", key, entry, now)
        refresh = max(0.0, entry.refresh_at - now)
        given = TokenGiven(asker.ticket, key, entry.issued, entry.number, refresh, duty)
        self._outbox.tell(asker.process, given)

    def _may_refresh(self, asker: Asker, entry: TokenEntry, now: float) -> bool:
        if entry.fetch is not None and not self._may_overtake(asker, entry):
            return False
        return now >= entry.retry_at and entry.troubles.pause_of(asker.process, now) is None

    def _answer_queue(self, key: TokenKey, entry: TokenEntry, now: float) -> None:
        """Those for whom the token will do get it; of the others one fetches a better one."""
        queue, entry.queue = entry.queue, OrderedDict()
        served: list[Asker] = []
        for place, asker in queue.items():
            if entry.suits(asker, now):
                served.append(asker)
            else:
                entry.queue[place] = asker
        if entry.fetch is None:
            self._pass_on(key, entry, now)
        for asker in served:
            self._give(asker, key, entry, now)

    def _pass_on(self, key: TokenKey, entry: TokenEntry, now: float) -> bool:
        """Nobody fetches any more: the next one who waits is appointed. False: there is none.

        Not one whose process pauses; and one whose process failed last only where no other waits. Where all
        pause, each is told what its own trouble is.
        """
        waiting = {process for process, _ in entry.queue}
        found = {process: entry.troubles.pause_of(process, now) for process in waiting}
        able = [place for place in entry.queue if found[place[0]] is None]
        if able:
            asker = entry.queue.pop(min(able, key=lambda place: entry.troubles.rank(place[0])))
            self._have_fetched(asker, key, entry, now)
            return True
        queue, entry.queue = entry.queue, OrderedDict()
        for asker in queue.values():
            pause = found[asker.process]
            assert pause is not None
            self._outbox.tell(asker.process, TokenRefused(asker.ticket, *pause))
        return False

    def _sweep(self, now: float) -> None:
        """Forget tokens that have expired, and entries that nobody has asked for in a long time."""
        for key, entry in list(self._entries.items()):
            if now >= entry.usable_until:
                entry.issued = None
            entry.troubles.forget_old(now)
            if entry.is_over(now):
                del self._entries[key]
        self._sweep_at = now + SWEEP_S if self._entries else math.inf


def _state(entry: TokenEntry, now: float) -> str:
    if entry.fetch is not None:
        return "fetching"
    if not entry.is_usable(now):
        return "failed" if now < entry.retry_at else "expired"
    return "ageing" if now >= entry.refresh_at else "fresh"

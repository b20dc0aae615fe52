"""All that is known of one token: its life, the process that fetches it, those that wait for it."""

from __future__ import annotations

import math
from collections import OrderedDict

from mppool.core.token_trouble import Troubles
from mppool.core.tokens import (
    REFRESH_AGAIN_S,
    Issued,
    TokenFailed,
    TokenFetched,
    WantToken,
    digest_of,
    life_of,
    margin_of,
    refresh_in,
)
from mppool.ids import ProcessId, Ticket

CHALLENGE_S = 5.0
"""For so long the answer to a claims challenge is given again to an asker with the same challenge."""

LONGEST_PATIENCE_S = 3600.0
LONGEST_RETRY_S = 3600.0
KEPT_UNUSED_S = 3600.0
"""An entry without a valid token is forgotten after so long."""


class Asker:
    """One that wants a token, and what would not do for it."""

    __slots__ = ("bad", "claims", "deadline", "near", "patience", "process", "ticket")

    def __init__(self, process: ProcessId, event: WantToken, now: float) -> None:
        self.process = process
        self.ticket = event.ticket
        self.claims = event.claims
        self.bad = event.bad
        self.near = event.near
        self.patience = min(max(event.patience, 0.0), LONGEST_PATIENCE_S)
        self.deadline = math.inf if event.timeout is None else now + event.timeout


class Fetch:
    """The process that fetches, for which challenge, and until when it is believed to."""

    __slots__ = ("claims", "number", "process", "ticket", "until")

    def __init__(self, number: int, asker: Asker, claims: str, now: float) -> None:
        self.number = number
        self.process = asker.process
        self.ticket = asker.ticket
        self.claims = claims
        self.until = now + asker.patience


class TokenEntry:
    """All that is known of one key. Instants are of the server's monotonic clock.

    insist: another token than the one here is wanted; what the credentials have in their caches will not do.
    spurned_at: when a token was refused, and the next one was asked for. floor: fetches up to this number have
        brought what is forgotten.

    claims, fetched_at: of the fetch `number`, which brought `issued`.
    again_at: when the issuer, asked for another token, gave this one again.
    """

    __slots__ = (
        "again_at",
        "asked_at",
        "claims",
        "digest",
        "error",
        "expires_at",
        "fetch",
        "fetched_at",
        "floor",
        "insist",
        "issued",
        "number",
        "queue",
        "refresh_at",
        "retry_at",
        "spurned_at",
        "troubles",
        "usable_until",
    )

    def __init__(self) -> None:
        self.issued: Issued | None = None
        self.number = 0
        self.digest = ""
        self.claims = ""
        self.fetched_at = -math.inf
        self.again_at = -math.inf
        self.expires_at = -math.inf
        self.usable_until = -math.inf
        self.refresh_at = -math.inf
        self.asked_at = -math.inf
        self.error = ""
        self.retry_at = -math.inf
        self.insist = False
        self.spurned_at = -math.inf
        self.floor = 0
        self.troubles = Troubles()
        self.fetch: Fetch | None = None
        self.queue: OrderedDict[tuple[ProcessId, Ticket], Asker] = OrderedDict()

    def take(self, event: TokenFetched, claims: str, now: float) -> None:
        """Hold the token that has come."""
        life = life_of(event.expires_in)
        digest = digest_of(event.issued.token)
        if digest == self.digest:
            # The issuer's own cache thinks that it is not time yet.
            self.refresh_at = now + min(REFRESH_AGAIN_S, life / 2)
            self.again_at = now
        else:
            self.refresh_at = now + refresh_in(event.expires_in, event.refresh_in)
            self.again_at = -math.inf
        self.issued, self.digest, self.number = event.issued, digest, event.fetch
        self.claims, self.fetched_at, self.expires_at = claims, now, now + event.expires_in
        self.usable_until = now + life - margin_of(life)
        self.error, self.retry_at = "", -math.inf
        self.insist = False

    def refuse(self, event: TokenFailed, now: float) -> float:
        """Have nobody try again for a while; so many seconds. What is here must do."""
        self.insist = False
        pause = min(event.retry_in, LONGEST_RETRY_S)
        self.error, self.retry_at = event.error, now + pause
        return pause

    def is_usable(self, now: float) -> bool:
        """Whether there is a token that may still be given to somebody."""
        return self.issued is not None and now < self.usable_until

    def suits(self, asker: Asker, now: float) -> bool:
        """Whether the token that is here is valid, and not the one that the asker has good reason to refuse."""
        if not self.is_usable(now) or self.insist:
            return False
        if not asker.claims:
            # Else each of many processes would be appointed in turn, to be given the same token again.
            again = asker.near and now < self.again_at + REFRESH_AGAIN_S
            return not asker.bad or asker.bad != self.digest or again
        # Only what was fetched for this very challenge will do, even if it is newer than what was refused.
        # The asker's copy may be that already, where another thread of its process was faster.
        recent = now < self.fetched_at + CHALLENGE_S
        return asker.claims == self.claims and (asker.bad != self.digest or recent)

    def spurn(self, token: str, now: float) -> bool:
        """The token was refused where it was used. Whether another one is to be fetched now."""
        if token != self.digest or self.issued is None or now < self.retry_at:
            return False
        if now < self.spurned_at + REFRESH_AGAIN_S:
            return False
        self.insist, self.spurned_at = True, now
        return True

    def forget(self, number: int) -> None:
        """What was fetched up to this number is not used any more."""
        self.issued, self.digest, self.floor = None, "", number
        self.insist = True

    def is_over(self, now: float) -> bool:
        """Whether nobody would miss it."""
        busy = self.fetch is not None or self.is_usable(now) or now < self.retry_at
        busy = busy or self.troubles.is_pausing(now)
        return not busy and self.asked_at + KEPT_UNUSED_S <= now

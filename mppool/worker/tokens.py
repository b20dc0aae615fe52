"""A process's copies of shared tokens, and how it comes by new ones.

A copy that is fresh costs a dict look-up and two comparisons, and asks nobody. Otherwise the server is
asked: it gives the token that somebody else has fetched, or appoints the asker to fetch one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.events import Abandoned
from mppool.core.tokens import (
    USABLE_S,
    FetchToken,
    TokenFailed,
    TokenFetched,
    TokenGiven,
    TokenKey,
    TokenQueued,
    TokenRefused,
    WantToken,
    digest_of,
    refresh_in,
)
from mppool.errors import ServerUnavailable
from mppool.ids import Ticket
from mppool.worker.calls import SessionLost
from mppool.worker.waiter import LocalWaiter

if TYPE_CHECKING:
    from mppool.worker.member import Member

log = logging.getLogger("mppool")

ASK_AGAIN_S = 1.0
"""An ageing token that somebody refreshes is asked for again after so long."""

DEFAULT_TIMEOUT_S = 60.0


class TokenUnavailable(Exception):
    """Another process failed to fetch this token just now; `retry_in` seconds are to be waited."""

    def __init__(self, text: str, retry_in: float) -> None:
        super().__init__(text)
        self.retry_in = retry_in


class Fetched:
    """A token as its issuer gave it. Instants are seconds since 1970, as in azure-core's AccessToken."""

    __slots__ = ("expires_on", "refresh_on", "token")

    def __init__(self, token: str, expires_on: float, refresh_on: float | None = None) -> None:
        self.token = token
        self.expires_on = expires_on
        self.refresh_on = refresh_on


class HeldToken:
    """A copy of a token. `ask_at` is monotonic: from then on the server is asked for a newer one."""

    __slots__ = ("ask_at", "expires_on", "refresh_on", "token")

    def __init__(
        self, token: str, expires_on: float, refresh_on: float | None, ask_at: float
    ) -> None:
        self.token = token
        self.expires_on = expires_on
        self.refresh_on = refresh_on
        self.ask_at = ask_at

    def is_usable(self) -> bool:
        """By the wall clock, which goes on while the machine is suspended (rule 14)."""
        return time.time() < self.expires_on - USABLE_S


class Source:
    """Where a token comes from when this process has to fetch it.

    fetch: called with the claims of a challenge ("" without one).
    describe: the text, without secrets, and the seconds to wait, that the other processes are told of an error.
    """

    __slots__ = ("describe", "fetch")

    def __init__(
        self, fetch: Callable[[str], Fetched], describe: Callable[[Exception], tuple[str, float]]
    ) -> None:
        self.fetch = fetch
        self.describe = describe


class TokenShare:
    """All token copies of one member. `_held` and `_waiters` are dicts used by single atomic operations."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._held: dict[TokenKey, HeldToken] = {}
        self._waiters: dict[Ticket, LocalWaiter] = {}

    def get(
        self,
        key: TokenKey,
        source: Source,
        *,
        claims: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> HeldToken:
        """A token that may be used.

        claims: of a challenge that refused the token which was handed out last.
        Raises what `source.fetch` raised in this thread; TokenUnavailable for a failure elsewhere, and for
        a timeout.
        """
        held = self._held.get(key)
        if held is not None and not claims and monotonic() < held.ask_at and held.is_usable():
            return held
        bad = "" if held is None or (not claims and held.is_usable()) else digest_of(held.token)
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            answer = self._ask(key, claims, bad, deadline)
            if answer is None:
                continue  # the session was lost; ask the next one
            if isinstance(answer, TokenGiven):
                return self._given(key, answer, source)
            if isinstance(answer, FetchToken):
                return self._fetch(key, answer.fetch, answer.claims, source)
            if isinstance(answer, TokenRefused):
                raise TokenUnavailable(answer.text, answer.retry_in)
            return self._fetch_alone(key, claims, source, answer)

    def answered(self, answer: Any) -> None:
        """An answer came on the errand channel."""
        waiter = self._waiters.get(answer.ticket)
        if waiter is not None and waiter.give(answer):
            return
        if isinstance(answer, FetchToken):
            # Nobody waits any more, so nobody will fetch: the next one shall be appointed.
            text = "the appointed thread waits no longer"
            self._member.tell(TokenFailed(answer.fetch, answer.key, text, 0.0))

    def session_lost(self, retry: Any) -> None:
        """Whoever waits asks again."""
        for waiter in list(self._waiters.values()):
            waiter.give(retry)

    def forget_waiters(self) -> None:
        """In a forked child: the parent's threads do not wait here."""
        self._waiters = {}

    def _ask(self, key: TokenKey, claims: str, bad: str, deadline: float | None) -> Any:
        ticket = self._member.next_ticket()
        waiter = LocalWaiter(ticket, "")
        self._waiters[ticket] = waiter
        left = None if deadline is None else max(0.0, deadline - monotonic())
        try:
            answer = self._member.call(WantToken(key, ticket, left, claims, bad), deadline)
            if isinstance(answer, TokenQueued):
                answer = waiter.wait(left)
                if answer is None:
                    self._member.tell(Abandoned(ticket))
                    return TokenRefused(ticket, "no token came within the timeout", 0.0)
            return answer if isinstance(answer, (TokenGiven, FetchToken, TokenRefused)) else None
        except SessionLost:
            return None
        except (ServerUnavailable, TimeoutError) as error:
            return error
        finally:
            self._waiters.pop(ticket, None)

    def _given(self, key: TokenKey, given: TokenGiven, source: Source) -> HeldToken:
        now = time.time()
        pause = given.refresh_in if given.refresh_in > 0 else ASK_AGAIN_S
        refresh_on = now + given.refresh_in
        held = HeldToken(given.token, now + given.expires_in, refresh_on, monotonic() + pause)
        self._held[key] = held
        if given.duty:
            self._member.chores.add(lambda: self._refresh(key, given.duty, source))
        return held

    def _refresh(self, key: TokenKey, duty: int, source: Source) -> None:
        """Fetch ahead of time, in the background. A failure is nobody's problem while the token is valid."""
        try:
            self._fetch(key, duty, "", source)
        except Exception as error:
            text, retry_in = source.describe(error)
            log.warning(
                "a token could not be refreshed, again in %.0f s: %s",
                retry_in,
                text,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )

    def _fetch(self, key: TokenKey, fetch: int, claims: str, source: Source) -> HeldToken:
        try:
            fetched = source.fetch(claims)
        except Exception as error:
            text, retry_in = source.describe(error)
            self._member.tell(TokenFailed(fetch, key, text, retry_in))
            raise
        except BaseException:
            self._member.tell(TokenFailed(fetch, key, "the fetching thread was interrupted", 0.0))
            raise
        expires_in = fetched.expires_on - time.time()
        said = None if fetched.refresh_on is None else fetched.refresh_on - time.time()
        self._member.tell(TokenFetched(fetch, key, fetched.token, expires_in, said))
        return self._hold(key, fetched, expires_in, said)

    def _hold(
        self, key: TokenKey, fetched: Fetched, expires_in: float, said: float | None
    ) -> HeldToken:
        ask_at = monotonic() + refresh_in(expires_in, said)
        held = HeldToken(fetched.token, fetched.expires_on, fetched.refresh_on, ask_at)
        self._held[key] = held
        return held

    def _fetch_alone(
        self, key: TokenKey, claims: str, source: Source, error: BaseException
    ) -> HeldToken:
        """There is no server to be had: a token is worth more than sharing it."""
        log.warning("a token is fetched for this process alone: %s", error)
        fetched = source.fetch(claims)
        return self._hold(key, fetched, fetched.expires_on - time.time(), None)

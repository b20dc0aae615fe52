"""A process's copies of shared tokens, and how it gets new ones.

A copy that is fresh costs a dict look-up and two comparisons, and asks nobody. Otherwise the server is
asked: it gives the token that somebody else has fetched, or appoints the asker to fetch one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from mppool.core.events import Abandoned, Event
from mppool.core.tokens import (
    FetchToken,
    Issued,
    TokenFailed,
    TokenFetched,
    TokenGiven,
    TokenKey,
    TokenQueued,
    TokenRefused,
    TokenSpurned,
    WantToken,
    digest_of,
    life_of,
    margin_of,
    refresh_in,
)
from mppool.errors import ServerUnavailable
from mppool.ids import Ticket
from mppool.link.connection import ASK_GRACE_S, SESSION_PAUSE_S, SessionLost
from mppool.logs import Log
from mppool.process.fork import notice_fork
from mppool.process.waiter import LocalWaiter
from mppool.tokens.cached_token import CachedToken, Fetched, Source, TokenUnavailable

if TYPE_CHECKING:
    from mppool.process.executor import BackgroundExecutor

log = Log("mppool")

ASK_AGAIN_S = 1.0
"""An ageing token that somebody refreshes is asked for again after so long."""

DEFAULT_TIMEOUT_S = 60.0

SERVER_PATIENCE_S = 10.0
"""After so long without an answer this process goes on without the server."""

MANY_COPIES = 256
"""Beyond so many copies, those that have expired are thrown out whenever there are twice as many."""

_TOO_LATE = "no token came within the timeout"


class Home(Protocol):
    """Where the books are: a Member, in the main."""

    chores: BackgroundExecutor

    def next_ticket(self) -> Ticket:
        """A ticket that this process has never used."""

    def call(self, event: Event, deadline: float | None) -> Any:
        """Tell the books and return their answer."""

    def tell(self, event: Event) -> None:
        """Tell the books, without an answer."""

    def attend(self) -> None:
        """Hear, from soon on, what is said to all processes."""


class Alone(Protocol):
    """Books of this process alone, for as long as there is no server: see in_process.py."""

    @property
    def cache(self) -> TokenCache:
        """The copies of tokens that come over these books."""

    def forget(self) -> None:
        """The tokens are not used any more."""

    def after_fork_in_child(self) -> None:
        """Copies stay; threads that fetch or wait do not exist here."""


class TokenCache:
    """All token copies of one member. `_held` and `_waiters` are dicts used by single atomic operations.

    make_alone: makes the books that stand in where there is no server.
    """

    def __init__(self, home: Home, make_alone: Callable[[], Alone]) -> None:
        self._home = home
        self._make_alone = make_alone
        self._held: dict[TokenKey, CachedToken] = {}
        self._many = MANY_COPIES
        self._waiters: dict[Ticket, LocalWaiter] = {}
        self._alone: dict[str, Alone] = {}
        # Fetches up to this number have brought what is forgotten, by identity; None: of all.
        self._forgotten: dict[str | None, int] = {}
        # In a forked child: copies are held here, and nobody says when they are forgotten.
        self._unattended = False

    def get(
        self,
        key: TokenKey,
        source: Source,
        *,
        claims: str = "",
        unlike: str = "",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> CachedToken:
        """A token that may be used.

        claims: of a challenge that refused the token which was handed out last.
        unlike: digest of a token that is near its end: the issuer is asked for another one, unless somebody
            has got one already. It may give the same again.
        timeout: seconds to wait for others (None: for ever); what `source.fetch` takes is its own business.
        Raises what `source.fetch` raised in this thread; TokenUnavailable for a failure elsewhere, and for
        a timeout.
        """
        notice_fork()
        held = self._held.get(key)
        if self._unattended:
            self._attend()
        if held is not None and not claims and held.is_fresh():  # noqa: SIM102  # the usual case first
            if not unlike or digest_of(held.token) != unlike:
                return held
        bad, near = unlike, bool(unlike)
        if held is not None and (claims or not held.is_usable()):
            bad, near = digest_of(held.token), False
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            answer = self._ask(key, claims, bad, near, deadline, source.patience)
            if isinstance(answer, TokenGiven):
                return self._given(key, answer, source)
            if isinstance(answer, FetchToken):
                question = (claims, bad, near, deadline, source.patience)
                return self._fetch_or_take(key, answer, source, question)
            if isinstance(answer, TokenRefused):
                raise TokenUnavailable(answer.text, answer.retry_in)
            if isinstance(answer, BaseException):
                return self._get_alone(key, source, claims, unlike, deadline, answer)
            # The session was lost; ask the next server.
            if deadline is not None and monotonic() >= deadline:
                raise TokenUnavailable(_TOO_LATE, 0.0)
            time.sleep(SESSION_PAUSE_S)

    def _attend(self) -> None:
        self._unattended = False
        self._home.attend()

    def _fetch_or_take(
        self,
        key: TokenKey,
        order: FetchToken,
        source: Source,
        question: tuple[str, str, bool, float | None, float],
    ) -> CachedToken:
        """Fetch; or else take what another process has fetched meanwhile, or is fetching, or what must do."""
        claims = order.claims
        insists = order.insist and not claims
        fetching = source.insist if insists else lambda: source.fetch(claims)
        try:
            return self._fetch(key, order.fetch, source, fetching)
        except Exception as error:
            if not source.describe(error).retry_in > 0:
                raise
            answer = self._ask(key, *question)
            if isinstance(answer, TokenGiven):
                return self._given(key, answer, source)
            if isinstance(answer, FetchToken):
                self._decline(key, answer.fetch)  # it waited for longer than the pause
            raise

    def peek(self, key: TokenKey) -> CachedToken | None:
        """The copy that this process holds, if it may be used without asking anybody."""
        held = self._held.get(key)
        return held if held is not None and held.is_fresh() else None

    def spurn(self, key: TokenKey, token: str) -> None:
        """What the token is for has refused it. Once in a while another one is fetched for all.

        The copy of this process goes at once: one that a fork has brought may be refused long after all others were
        told, and nobody is told twice. What is handed out now, the books decide.

        token: its digest.
        """
        self._home.tell(TokenSpurned(key, token))
        self.forget(key.identity, 0, token)

    def forget(self, identity: str | None, fetch: int, token: str = "") -> None:
        """Use no copy any more of what was fetched up to this number, or of the one token with this digest."""
        if not token:
            self._forgotten[identity] = max(fetch, self._forgotten.get(identity, 0))
            for alone in list(self._alone.values()):
                alone.forget()
        for key, copy in list(self._held.items()):
            if identity not in (None, key.identity):
                continue
            if digest_of(copy.token) == token if token else copy.number <= fetch:
                self._drop_copy(key, copy)

    def drop(self, identity: str | None) -> None:
        """Use no copy of this identity (None: of any) that this process holds now."""
        for key, copy in list(self._held.items()):
            if identity in (None, key.identity):
                self._drop_copy(key, copy)

    def _drop_copy(self, key: TokenKey, copy: CachedToken) -> None:
        copy.ask_at = -math.inf  # a caller that has this object at hand looks here again
        self._held.pop(key, None)

    def _is_forgotten(self, key: TokenKey, number: int) -> bool:
        floor = max(self._forgotten.get(None, 0), self._forgotten.get(key.identity, 0))
        return 0 < number <= floor

    def answered(self, answer: Any) -> None:
        """An answer came on the errand channel."""
        waiter = self._waiters.get(answer.ticket)
        if waiter is not None and waiter.give(answer):
            return
        if isinstance(answer, FetchToken):
            self._decline(answer.key, answer.fetch)
        elif isinstance(answer, TokenGiven) and answer.duty:
            self._decline(answer.key, answer.duty)

    def retry(self, ticket: Ticket, retry: Any) -> None:
        """The thread that waits with this ticket must ask again: its place in the queue is gone."""
        waiter = self._waiters.get(ticket)
        if waiter is not None:
            waiter.give(retry)

    def session_lost(self, retry: Any) -> None:
        """Every waiting thread asks again."""
        for waiter in list(self._waiters.values()):
            waiter.give(retry)

    def forget_waiters(self) -> None:
        """In a forked child: the parent's threads do not wait here."""
        self._waiters = {}
        self._unattended = bool(self._held)
        for alone in self._alone.values():
            alone.after_fork_in_child()

    def _decline(self, key: TokenKey, fetch: int) -> None:
        """Nobody waits any more, so nobody will fetch: the next one must be appointed."""
        self._home.tell(TokenFailed(fetch, key, "the appointed thread waits no longer", 0.0))

    def _ask(
        self,
        key: TokenKey,
        claims: str,
        bad: str,
        near: bool,
        deadline: float | None,
        patience: float,
    ) -> Any:
        """The server's decision; None: ask again; an exception: no server can be had."""
        ticket = self._home.next_ticket()
        waiter = LocalWaiter(ticket, "")
        self._waiters[ticket] = waiter
        now = monotonic()
        left = math.inf if deadline is None else max(0.0, deadline - now)
        timeout = None if deadline is None else left
        want = WantToken(key, ticket, timeout, claims, bad, patience, near)
        try:
            # However little time a caller has, a server that is merely busy is not taken for one that is gone.
            patience_with_server = max(ASK_GRACE_S, min(left, SERVER_PATIENCE_S))
            answer = self._home.call(want, now + patience_with_server)
            if isinstance(answer, TokenQueued):
                answer = waiter.wait(deadline)
                if answer is None:
                    self._home.tell(Abandoned(ticket))
                    return TokenRefused(ticket, _TOO_LATE, 0.0)
            return answer if isinstance(answer, (TokenGiven, FetchToken, TokenRefused)) else None
        except SessionLost:
            return None
        except (ServerUnavailable, TimeoutError) as error:
            return error
        finally:
            self._waiters.pop(ticket, None)

    def _given(self, key: TokenKey, given: TokenGiven, source: Source) -> CachedToken:
        pause = given.refresh_in if given.refresh_in > 0 else ASK_AGAIN_S
        held = CachedToken(given.issued, given.number, monotonic() + pause)
        self._keep(key, held)
        if given.duty:
            self._home.chores.add(lambda: self._refresh(key, given.duty, source))
        return held

    def _refresh(self, key: TokenKey, duty: int, source: Source) -> None:
        """Fetch ahead of time, in the background. A failure is nobody's problem while the token is valid."""
        try:
            self._fetch(key, duty, source, source.refresh)
        except Exception as error:  # noqa: BLE001  # logged without its traceback, which may say too much
            failure = source.describe(error)
            # Where another thread or process tries next, there is nothing to worry about.
            level = logging.WARNING if failure.retry_in > 0 else logging.DEBUG
            log.log(
                level, "a token of %s could not be refreshed, again in %.0f s: %s",
                key.identity, failure.retry_in, failure.text,
            )  # fmt: skip

    def _fetch(
        self, key: TokenKey, fetch: int, source: Source, fetching: Callable[[], Fetched]
    ) -> CachedToken:
        """Do what this process is appointed to do, and tell the server how it went."""
        try:
            fetched = fetching()
            issued, expires_in, said = _as_issued(fetched)
        except Exception as error:
            self._home.tell(TokenFailed(fetch, key, *source.describe(error)))
            raise
        except BaseException:
            self._home.tell(TokenFailed(fetch, key, "the fetching thread was interrupted", 0.0))
            raise
        self._home.tell(TokenFetched(fetch, key, issued, expires_in, said))
        held = CachedToken(issued, fetch, monotonic() + refresh_in(expires_in, said))
        self._keep(key, held)
        return held

    def _keep(self, key: TokenKey, held: CachedToken) -> None:
        """Hold a copy, unless a newer one has come meanwhile: a fetch that hung brings an old token."""
        if self._forgotten and self._is_forgotten(key, held.number):
            held.ask_at = -math.inf
            return
        before = self._held.get(key)
        if before is not None:
            if before.number > held.number and before.is_usable():
                held.ask_at = (
                    -math.inf
                )  # the thread that fetched it may use it, and asks the next time
                return
            before.ask_at = -math.inf  # a caller that has this object at hand looks here again
        elif len(self._held) >= self._many:
            self._throw_out_expired()
        self._held[key] = held

    def _throw_out_expired(self) -> None:
        for key, copy in list(self._held.items()):
            if not copy.is_usable():
                self._held.pop(key, None)
        self._many = max(MANY_COPIES, 2 * len(self._held))

    def _get_alone(
        self,
        key: TokenKey,
        source: Source,
        claims: str,
        unlike: str,
        deadline: float | None,
        error: BaseException,
    ) -> CachedToken:
        """No server can be had. A token is worth more than sharing it between processes."""
        log.warning("a token of %s is fetched for this process alone: %s", key.identity, error)
        left = None if deadline is None else max(0.0, deadline - monotonic())
        held = self._cache_alone().get(key, source, claims=claims, unlike=unlike, timeout=left)
        before = self._held.get(key)
        # As new as what is here: it replaces that, and is replaced by whatever comes over a server.
        mine = held.numbered(0 if before is None else before.number)
        self._keep(key, mine)
        return mine

    def _cache_alone(self) -> TokenCache:
        """The threads of this process share its tokens all the same."""
        found = self._alone.get("")
        return (self._alone.setdefault("", self._make_alone()) if found is None else found).cache


def _as_issued(fetched: Fetched) -> tuple[Issued, float, float | None]:
    """The token, the seconds of its life, and after how many of them its issuer wants it refreshed."""
    now = time.time()
    expires_in = fetched.expires_on - now
    said = None if fetched.refresh_on is None else fetched.refresh_on - now
    life = life_of(expires_in)
    until = now + life - margin_of(life)
    return Issued(fetched.token, fetched.expires_on, fetched.refresh_on, until), expires_in, said

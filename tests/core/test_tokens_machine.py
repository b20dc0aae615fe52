"""The token cache whatever happens: processes ask, fetch, fail, hang, die and come back in any order."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mppool.core.events import Abandoned, Attach, CallEnded, Detached, Died
from mppool.core.tokens import (
    FETCH_PATIENCE_S,
    REFRESH_AGAIN_S,
    FetchToken,
    TokenFailed,
    TokenFetched,
    TokenGiven,
    TokenKey,
    TokenRefused,
    WantToken,
    digest_of,
    life_of,
    margin_of,
)
from mppool.ids import ProcessId, Session, Ticket
from tests.core.desk import Desk
from tests.core.test_tokens import KEY, OTHER, issued

PROCESSES = [ProcessId(pid, 1) for pid in (1, 2, 3)]
KEYS = [KEY, OTHER]


class TokenMachine(RuleBasedStateMachine):
    """Processes ask, fetch, fail, hang, die and come back in any order.

    waiting: who waits -> the key, until when, the challenge, the token that would not do, whether it is near.
    appointed: number of each fetch that the books count on -> (key, process, until when).
    open: fetches whose token has not come, whether the books count on them or not.
    challenges: for which challenge a fetch was ordered. blocked: until when nobody may be appointed.
    troubles: of a process and key: until when it pauses, and whether its last fetch failed by its own fault.
    """

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(*PROCESSES)
        self.tickets = itertools.count(1)
        self.sessions = itertools.count(100)
        self.waiting: dict[
            tuple[ProcessId, int], tuple[TokenKey, float, str, str | None, bool]
        ] = {}
        self.challenges: dict[int, str] = {}
        self.blocked: dict[TokenKey, float] = defaultdict(lambda: -math.inf)
        self.troubles: dict[tuple[TokenKey, ProcessId], tuple[float, bool]] = {}
        self.given_again: dict[str, float] = {}
        self.appointed: dict[int, tuple[TokenKey, ProcessId, float]] = {}
        self.open: dict[int, tuple[TokenKey, ProcessId]] = {}
        self.born: dict[str, tuple[TokenKey, float, int]] = {}
        self.newest: dict[TokenKey, int] = defaultdict(int)
        self.texts = itertools.count(1)

    # What the processes hear.

    def hear(self) -> None:
        told, self.desk.told = self.desk.told, {}
        for process, decisions in told.items():
            for decision in decisions:
                self.hear_one(process, decision)

    def hear_one(self, process: ProcessId, decision: Any) -> None:
        now = self.desk.clock()
        if not isinstance(decision, (TokenGiven, FetchToken, TokenRefused)):
            return
        asked = self.waiting.pop((process, decision.ticket), None)
        assert asked is not None, "an answer that nobody waits for"
        if isinstance(decision, FetchToken):
            self.appoint(decision.fetch, decision.key, process, asked[2])
            assert decision.key == asked[0]
            assert decision.claims == asked[2], (
                "somebody fetches for another challenge than its own"
            )
        elif isinstance(decision, TokenGiven):
            key, ends, number = self.born[decision.issued.token]
            assert key == asked[0] == decision.key, "a token for another key"
            assert now < ends, "a token that has expired"
            assert number == decision.number
            assert number >= self.newest[key], "a newer token was replaced by an older one"
            self.newest[key] = number
            self.check_suits(decision.issued.token, number, asked)
            if decision.duty:
                self.appoint(decision.duty, decision.key, process, "")

    def check_suits(self, text: str, number: int, asked: Any) -> None:
        """A challenge wants what was fetched for it; another asker anything but what it has refused."""
        _, _, claims, bad, near = asked
        if claims:
            assert self.challenges[number] == claims, "a challenge was answered with another token"
        elif bad == text:
            recent = self.given_again.get(text, -math.inf) + REFRESH_AGAIN_S
            assert near, "one that found its copy expired got it again"
            assert self.desk.clock() < recent, "nobody has asked the issuer for another one"

    def appoint(self, fetch: int, key: TokenKey, process: ProcessId, claims: str) -> None:
        now = self.desk.clock()
        assert now >= self.blocked[key], "somebody is appointed before the pause is over"
        pause, suspect = self.troubles.get((key, process), (-math.inf, False))
        assert now >= pause, "who has just failed is appointed again"
        if (key, process) in self.troubles:
            for (waiter, _), (its_key, *_) in self.waiting.items():
                better = its_key == key and (key, waiter) not in self.troubles
                assert not better, "who failed last is appointed while somebody else asks"
        self.challenges[fetch] = claims
        for other, (its_key, its_process, _) in list(self.appointed.items()):
            if its_key == key:
                _, believed_less = self.troubles.get((key, its_process), (0.0, False))
                assert believed_less, "two are believed to fetch one key"
                assert not suspect, "two that have failed fetch one key"
                del self.appointed[other]
        self.appointed[fetch] = (key, process, now + FETCH_PATIENCE_S)
        self.open[fetch] = (key, process)

    def say(self, process: ProcessId, event: Any) -> None:
        self.desk.say(process, event)
        self.hear()

    # What happens.

    @rule(
        process=st.sampled_from(PROCESSES),
        key=st.sampled_from(KEYS),
        timeout=st.sampled_from([0.0, 5.0, 100.0]),
        claims=st.sampled_from(["", "", "C", "D"]),
        refuses=st.sampled_from(["nothing", "nothing", "the newest", "the newest, near its end"]),
    )
    def ask(
        self, process: ProcessId, key: TokenKey, timeout: float, claims: str, refuses: str
    ) -> None:
        if self.desk.books.session_of(process) is None:
            return
        ticket = next(self.tickets)
        mine = [text for text, (whose, _, _) in self.born.items() if whose == key]
        bad = mine[-1] if mine and refuses != "nothing" else None
        near = bad is not None and refuses.endswith("end")
        self.waiting[process, ticket] = (key, self.desk.clock() + timeout, claims, bad, near)
        digest = "" if bad is None else digest_of(bad)
        self.say(process, WantToken(key, Ticket(ticket), timeout, claims, digest, near=near))

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        life=st.sampled_from([-5.0, 0.5, 20.0, 302.0, 3600.0]),
        again=st.booleans(),
    )
    def bring(self, data: Any, life: float, again: bool) -> None:
        """A new token; or the last one again, as issuers with a cache give it."""
        fetch = data.draw(st.sampled_from(sorted(self.open)))
        key, process = self.open.pop(fetch)
        if self.desk.books.session_of(process) is None:
            return
        mine = [text for text, (whose, _, _) in self.born.items() if whose == key]
        text = mine[-1] if again and mine else f"token {next(self.texts)}"
        if again and mine:
            if fetch not in self.appointed and fetch <= self.born[text][2]:
                return  # late, and older: the books need not look at it
            self.given_again[text] = self.desk.clock()
        self.blocked[key] = -math.inf
        length = life_of(life)
        self.born[text] = (key, self.desk.clock() + length - margin_of(length), fetch)
        self.appointed.pop(fetch, None)
        self.troubles.pop((key, process), None)
        self.say(process, TokenFetched(fetch, key, issued(text), life, None))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), retry_in=st.sampled_from([0.0, 1.0, 50.0]), everybody=st.booleans())
    def fail(self, data: Any, retry_in: float, everybody: bool) -> None:
        fetch = data.draw(st.sampled_from(sorted(self.open)))
        key, process = self.open.pop(fetch)
        if self.desk.books.session_of(process) is None:
            return
        now = self.desk.clock()
        appointed = self.appointed.pop(fetch, None)
        if not everybody or not retry_in:
            self.troubles.pop((key, process), None)
            self.troubles[key, process] = (now + retry_in, retry_in > 0)
        elif appointed is not None:
            self.blocked[key] = now + retry_in
        self.say(process, TokenFailed(fetch, key, "no", retry_in, everybody))

    @rule(process=st.sampled_from(PROCESSES), dies=st.booleans())
    def go(self, process: ProcessId, dies: bool) -> None:
        for asked in [asked for asked in self.waiting if asked[0] == process]:
            del self.waiting[asked]
        for fetch, (_, whose, _) in list(self.appointed.items()):
            if whose == process:
                del self.appointed[fetch]
        if dies:
            for fetch, (_, whose) in list(self.open.items()):
                if whose == process:
                    del self.open[fetch]
        self.say(process, Died() if dies else Detached())

    @rule(process=st.sampled_from(PROCESSES))
    def come_back(self, process: ProcessId) -> None:
        if self.desk.books.session_of(process) is None:
            session = Session(next(self.sessions))
            event = Attach("", [], [])
            self.desk.note(self.desk.books.apply(process, session, event, self.desk.clock()))
            self.hear()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), abandons=st.booleans())
    def stop_waiting(self, data: Any, abandons: bool) -> None:
        process, ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[process, ticket]
        word = Abandoned if abandons else CallEnded
        self.say(process, word(Ticket(ticket)))

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 31.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        """Tick by tick, as the server does it."""
        end = self.desk.clock() + seconds
        while True:
            at = self.desk.books.next_deadline(self.desk.clock())
            if at is None or at > end:
                break
            self.desk.clock.advance(max(0.0, at - self.desk.clock()))
            self.lose_patience()
            self.desk.note(self.desk.books.tick(self.desk.clock()))
            self.hear()
        self.desk.clock.advance(end - self.desk.clock())

    def lose_patience(self) -> None:
        """Fetches that take too long are the trouble of their process."""
        now = self.desk.clock()
        for fetch, (key, process, until) in list(self.appointed.items()):
            if until <= now:
                del self.appointed[fetch]
                self.troubles.pop((key, process), None)
                self.troubles[key, process] = (now, True)

    @invariant()
    def nobody_waits_beyond_his_timeout(self) -> None:
        now = self.desk.clock()
        assert all(deadline >= now - 1e-9 for _, deadline, *_ in self.waiting.values())

    @invariant()
    def whoever_waits_waits_for_somebody(self) -> None:
        fetched = {key for key, _, _ in self.appointed.values()}
        assert {key for key, *_ in self.waiting.values()} <= fetched


TokenMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_whatever_happens = TokenMachine.TestCase


MANY = [ProcessId(pid, 1) for pid in range(1, 7)]
GOOD = MANY[-1]


class OneGoodCredentialMachine(RuleBasedStateMachine):
    """Of six processes one has a good credential. Whatever the others do, it gets a token within one fetch.

    fetching: by number: the process, when it will be done. failed: processes that have failed already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(*MANY)
        self.tickets = itertools.count(1)
        self.fetching: dict[int, tuple[ProcessId, float]] = {}
        self.failed: set[ProcessId] = set()

    @rule(
        process=st.sampled_from([*MANY, GOOD, GOOD]),
        takes=st.sampled_from([0.0, 0.3, 4.0, 29.0]),
    )
    def ask(self, process: ProcessId, takes: float) -> None:
        self.desk.say(process, WantToken(KEY, Ticket(next(self.tickets)), 1000.0))
        self.hear(takes)

    def hear(self, takes: float) -> None:
        told, self.desk.told = self.desk.told, {}
        for process, decisions in told.items():
            for decision in decisions:
                number = getattr(decision, "fetch", 0) or getattr(decision, "duty", 0)
                if number:
                    self.fetching[number] = (process, self.desk.clock() + takes)
                refused = process == GOOD and isinstance(decision, TokenRefused)
                assert not refused, "somebody else's failure"

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0, 40.0]), takes=st.sampled_from([0.0, 0.3, 29.0]))
    def time_passes(self, seconds: float, takes: float) -> None:
        """What is being fetched comes, or does not."""
        end = self.desk.clock() + seconds
        while due := [(at, fetch) for fetch, (_, at) in self.fetching.items() if at <= end]:
            at, fetch = min(due)
            process, _ = self.fetching.pop(fetch)
            self.desk.clock.advance(max(0.0, at - self.desk.clock()))
            self.desk.note(self.desk.books.tick(self.desk.clock()))
            if process == GOOD:
                self.desk.say(
                    process, TokenFetched(fetch, KEY, issued(f"token {fetch}"), 20.0, None)
                )
            else:
                self.failed.add(process)
                self.desk.say(
                    process, TokenFailed(fetch, KEY, "my secret is old", 5.0, everybody=False)
                )
            self.hear(takes)
        self.desk.clock.advance(end - self.desk.clock())
        self.desk.note(self.desk.books.tick(self.desk.clock()))
        self.hear(takes)

    @invariant()
    def the_good_one_waits_only_for_itself_or_for_who_has_not_failed_yet(self) -> None:
        entry = self.desk.books.tokens._entries.get(KEY)
        if entry is None or not any(process == GOOD for process, _ in entry.queue):
            return
        assert entry.fetch is not None
        assert entry.fetch.process == GOOD or entry.fetch.process not in self.failed


OneGoodCredentialMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
test_one_good_credential = OneGoodCredentialMachine.TestCase

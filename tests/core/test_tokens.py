"""The token cache, with a manual clock: one fetch per key, and nobody is forgotten."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from mppool.core.decisions import AskAgain, Decision
from mppool.core.events import Abandoned, CallEnded, Detached, Died
from mppool.core.token_books import SWEEP_S
from mppool.core.token_entry import CHALLENGE_S, KEPT_UNUSED_S, LONGEST_RETRY_S
from mppool.core.tokens import (
    FETCH_PATIENCE_S,
    REFRESH_AGAIN_S,
    USABLE_S,
    FetchToken,
    ForgetTokens,
    Issued,
    TokenFailed,
    TokenFetched,
    TokenGiven,
    TokenKey,
    TokenQueued,
    TokenRefused,
    TokensForgotten,
    TokenSpurned,
    WantToken,
    digest_of,
    refresh_in,
)
from mppool.ids import ProcessId, Ticket
from mppool.wire.framing import encode, process_side_reader, server_side_reader
from tests.core.desk import Desk, P, Q, R

KEY = TokenKey("msi:system", ("scope",), "", False)
OTHER = TokenKey("msi:other", ("scope",), "", False)
HOUR = 3600.0


def issued(text: str) -> Issued:
    return Issued(text, 0.0, None, 0.0)


class Counter:
    """Processes that talk about tokens."""

    def __init__(self, *processes: ProcessId) -> None:
        self.desk = Desk(*(processes or (P, Q, R)))
        self.tickets = itertools.count(1)

    def want(self, process: ProcessId, key: TokenKey = KEY, **more: Any) -> Any:
        """The direct answer."""
        ticket = Ticket(next(self.tickets))
        event = WantToken(key, ticket, more.pop("timeout", 60.0), **more)
        decisions = self.desk.say(process, event)
        (answer,) = [one for one in decisions if getattr(one, "ticket", None) == ticket]
        self.desk.told.clear()
        return answer

    def fetch(self, process: ProcessId = P, text: str = "one", **more: Any) -> Any:
        """Ask, be appointed, and bring a token."""
        appointed = self.want(process, **more)
        assert isinstance(appointed, FetchToken)
        return self.bring(process, appointed.fetch, text)

    def fetch_other(self) -> None:
        """Have a token of another key too."""
        self.bring(P, self.want(P, OTHER).fetch, "other", key=OTHER)

    def bring(
        self,
        process: ProcessId,
        fetch: int,
        text: str,
        expires_in: float = HOUR,
        said: float | None = None,
        key: TokenKey = KEY,
    ) -> list[Decision]:
        return self.desk.say(process, TokenFetched(fetch, key, issued(text), expires_in, said))

    def fail(
        self, process: ProcessId, fetch: int, retry_in: float = 5.0, *, everybody: bool = True
    ) -> list[Decision]:
        return self.desk.say(process, TokenFailed(fetch, KEY, "Error: no", retry_in, everybody))

    def wait(self, seconds: float) -> list[Decision]:
        self.desk.clock.advance(seconds)
        return self.desk.note(self.desk.books.tick(self.desk.clock()))


# --- one fetch --------------------------------------------------------------------------------------------


def test_the_first_asker_is_appointed_and_the_others_wait_for_him() -> None:
    counter = Counter()
    appointed = counter.want(P)
    assert isinstance(appointed, FetchToken)
    assert isinstance(counter.want(Q), TokenQueued)
    assert isinstance(counter.want(R), TokenQueued)
    told = counter.bring(P, appointed.fetch, "one")
    assert [type(one) for one in told] == [TokenGiven, TokenGiven]
    assert {one.issued.token for one in told} == {"one"}


def test_a_valid_token_is_given_at_once_with_the_time_of_its_refresh() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(100)
    given = counter.want(Q)
    assert isinstance(given, TokenGiven)
    assert given.refresh_in == pytest.approx(HOUR - 300 - 100)
    assert given.duty == 0


def test_keys_are_kept_apart() -> None:
    counter = Counter()
    counter.fetch(text="mine")
    for other in (
        TokenKey("msi:other", ("scope",), "", False),
        TokenKey("msi:system", ("scope", "more"), "", False),
        TokenKey("msi:system", ("scope",), "tenant", False),
        TokenKey("msi:system", ("scope",), "", True),
    ):
        assert isinstance(counter.want(Q, other), FetchToken)


def test_an_ageing_token_is_given_to_all_and_one_of_them_refreshes_it() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - 299)
    first, second, third = counter.want(P), counter.want(Q), counter.want(R)
    assert first.duty
    assert (second.duty, third.duty) == (0, 0)
    counter.bring(P, first.duty, "two")
    assert counter.want(Q).issued.token == "two"


def test_tokens_of_302_seconds_are_refreshed_once_each_and_not_by_every_call() -> None:
    processes = [ProcessId(pid, 1) for pid in range(200, 208)]
    counter = Counter(*processes)
    fetches = 0
    for second in range(3020):
        for process in processes:
            answer = counter.want(process)
            number = answer.fetch if isinstance(answer, FetchToken) else answer.duty
            if number:
                fetches += 1
                counter.bring(process, number, f"token {second}", 302.0)
        counter.wait(1.0)
    assert fetches == 20  # one in each half life; there were 24,160 calls


def test_what_the_issuer_says_of_refreshing_is_respected() -> None:
    counter = Counter()
    appointed = counter.want(P)
    counter.bring(P, appointed.fetch, "one", HOUR, said=1000.0)
    counter.desk.clock.advance(999)
    assert counter.want(Q).duty == 0
    counter.desk.clock.advance(2)
    assert counter.want(Q).duty


def test_an_issuer_that_gives_the_same_token_again_is_not_asked_by_every_call() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - 300)
    duty = counter.want(P).duty
    counter.bring(P, duty, "one", 300.0)
    assert counter.want(Q).duty == 0
    counter.desk.clock.advance(REFRESH_AGAIN_S)
    assert counter.want(Q).duty


@pytest.mark.parametrize("expires_in", [-1e9, -5.0, 0.0, 0.5, 2.0, 1e300])
def test_an_issuer_that_lies_about_expiry_is_not_asked_by_every_call(expires_in: float) -> None:
    counter = Counter()
    counter.bring(P, counter.want(P).fetch, "one", expires_in)
    assert counter.want(Q).issued.token == "one"
    assert counter.want(R).duty == 0


@pytest.mark.parametrize("expires_in", [math.nan, math.inf, -math.inf])
def test_an_expiry_that_is_no_number_is_a_failure(expires_in: float) -> None:
    counter = Counter()
    appointed = counter.want(P)
    assert isinstance(counter.want(Q), TokenQueued)
    (refused,) = counter.bring(P, appointed.fetch, "one", expires_in)
    assert isinstance(refused, TokenRefused)


def test_the_end_of_a_token_is_nobody_elses_problem() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - USABLE_S)
    assert isinstance(counter.want(Q), FetchToken)


# --- failures ---------------------------------------------------------------------------------------------


def test_a_failure_is_told_to_all_who_wait_and_remembered() -> None:
    counter = Counter()
    appointed = counter.want(P)
    counter.want(Q)
    (refused,) = counter.fail(P, appointed.fetch, 17.0)
    assert isinstance(refused, TokenRefused)
    assert (refused.text, refused.retry_in) == ("Error: no", 17.0)
    counter.desk.clock.advance(16)
    again = counter.want(R)
    assert isinstance(again, TokenRefused)
    assert again.retry_in == pytest.approx(1.0)
    counter.desk.clock.advance(1)
    assert isinstance(counter.want(R), FetchToken)


def test_a_failed_refresh_withholds_no_valid_token() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - 299)
    duty = counter.want(P).duty
    counter.fail(P, duty, 20.0)
    answers = [counter.want(process) for process in (P, Q, R)]
    assert [answer.issued.token for answer in answers] == ["one"] * 3
    assert [answer.duty for answer in answers] == [0, 0, 0]
    counter.desk.clock.advance(20)
    assert counter.want(Q).duty


def test_nobody_is_put_off_for_longer_than_an_hour() -> None:
    counter = Counter()
    counter.fail(P, counter.want(P).fetch, 1e12)
    assert counter.want(P).retry_in == LONGEST_RETRY_S


@pytest.mark.parametrize("retry_in", [0.0, -1.0, math.nan])
def test_trouble_of_one_process_alone_passes_the_fetch_on(retry_in: float) -> None:
    counter = Counter()
    appointed = counter.want(P)
    counter.want(Q)
    (passed,) = counter.fail(P, appointed.fetch, retry_in)
    assert isinstance(passed, FetchToken)


def test_an_old_failure_says_nothing_about_a_new_fetch() -> None:
    counter = Counter()
    appointed = counter.want(P)
    counter.want(Q)
    counter.wait(FETCH_PATIENCE_S)
    assert counter.fail(P, appointed.fetch) == []
    assert isinstance(counter.want(R), TokenQueued)


def test_a_failure_that_comes_late_counts_where_nobody_has_come_after() -> None:
    counter = Counter()
    hung = counter.want(P)
    counter.wait(FETCH_PATIENCE_S)
    assert counter.fail(P, hung.fetch, 17.0) == []
    assert counter.want(Q).retry_in == 17.0
    counter.wait(17.0)
    again = counter.want(Q)
    counter.bring(Q, again.fetch, "one")
    counter.fail(P, hung.fetch, 17.0)  # older than the token
    counter.desk.clock.advance(HOUR - USABLE_S)
    assert isinstance(counter.want(Q), FetchToken)


def test_a_token_that_has_come_ends_the_pause_of_an_earlier_failure() -> None:
    counter = Counter()
    hung = counter.want(P)
    counter.wait(FETCH_PATIENCE_S)
    counter.fail(Q, counter.want(Q).fetch, 3600.0)
    counter.bring(P, hung.fetch, "late", 100.0)
    assert counter.want(R).issued.token == "late"
    counter.desk.clock.advance(100.0 - USABLE_S)
    assert isinstance(counter.want(R), FetchToken)


# --- the trouble of one process ---------------------------------------------------------------------------


def test_the_trouble_of_one_process_appoints_another_at_once_and_it_waits_itself() -> None:
    counter = Counter()
    appointed = counter.want(P)
    again = counter.want(P)
    queued = counter.want(Q)
    (passed,) = counter.fail(P, appointed.fetch, everybody=False)
    assert isinstance(passed, FetchToken)
    assert passed.ticket == queued.ticket  # although P's other thread came first
    (given,) = counter.bring(Q, passed.fetch, "one")
    assert isinstance(given, TokenGiven)
    assert given.ticket == again.ticket


def test_of_those_that_wait_one_that_has_not_failed_is_next_although_it_came_later() -> None:
    counter = Counter()
    counter.fail(P, counter.want(P).fetch, 5.0, everybody=False)
    counter.wait(6)
    appointed = counter.want(R)
    counter.want(P)
    queued = counter.want(Q)
    (passed,) = counter.fail(R, appointed.fetch, everybody=False)
    assert isinstance(passed, FetchToken)
    assert passed.ticket == queued.ticket


def test_a_process_in_trouble_is_not_appointed_before_its_pause_is_over() -> None:
    counter = Counter()
    appointed = counter.want(P)
    waiting = counter.want(P)
    (refused,) = counter.fail(P, appointed.fetch, 5.0, everybody=False)
    assert isinstance(refused, TokenRefused)
    assert (refused.ticket, refused.text, refused.retry_in) == (waiting.ticket, "Error: no", 5.0)
    assert isinstance(counter.want(P), TokenRefused)
    assert isinstance(counter.want(Q), FetchToken)


def test_nobody_waits_for_a_process_that_has_failed_but_others_that_have_failed() -> None:
    counter = Counter()
    counter.fail(P, counter.want(P).fetch, 5.0, everybody=False)
    counter.fail(Q, counter.want(Q).fetch, 5.0, everybody=False)
    counter.wait(6)
    assert isinstance(counter.want(P), FetchToken)
    assert isinstance(counter.want(Q), TokenQueued)
    assert isinstance(counter.want(R), FetchToken)
    assert isinstance(counter.want(P), TokenQueued)


def test_a_process_that_cannot_refresh_leaves_it_to_the_others() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - 299)
    counter.fail(P, counter.want(P).duty, 5.0, everybody=False)
    assert counter.want(P).duty == 0
    assert counter.want(Q).duty


# --- refused where it is used, and forgotten ------------------------------------------------------------------


def test_a_token_that_was_refused_is_replaced_once_in_a_while_for_all() -> None:
    counter = Counter()
    counter.fetch()
    told = counter.desk.say(Q, TokenSpurned(KEY, digest_of("one")))
    assert told == [TokensForgotten(KEY.identity, 0, digest_of("one"))] * 3
    appointed = counter.want(R)
    assert isinstance(appointed, FetchToken)
    assert appointed.insist
    counter.bring(R, appointed.fetch, "two")
    assert counter.want(P).issued.token == "two"
    assert counter.desk.say(Q, TokenSpurned(KEY, digest_of("two"))) == []
    assert counter.want(P).issued.token == "two"
    counter.desk.clock.advance(REFRESH_AGAIN_S)
    assert counter.desk.say(Q, TokenSpurned(KEY, digest_of("one"))) == []  # an old story
    counter.desk.say(Q, TokenSpurned(KEY, digest_of("two")))
    assert isinstance(counter.want(P), FetchToken)


@pytest.mark.parametrize("everybody", [True, False])
def test_a_token_that_was_refused_must_do_where_there_is_no_other(everybody: bool) -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.say(Q, TokenSpurned(KEY, digest_of("one")))
    appointed = counter.want(P)
    waiting = counter.want(P)
    (told, *_) = counter.fail(P, appointed.fetch, 5.0, everybody=everybody)
    assert told.ticket == waiting.ticket
    assert counter.want(R).issued.token == "one"
    assert counter.want(P).issued.token == "one"


def test_what_is_forgotten_is_given_to_nobody_and_what_was_on_its_way_is_not_kept() -> None:
    counter = Counter()
    counter.fetch()
    counter.fetch_other()
    counter.desk.clock.advance(HOUR - 299)
    duty = counter.want(P).duty
    told = counter.desk.command(ForgetTokens(KEY.identity))
    assert {type(one) for one in told} == {TokensForgotten}
    assert counter.want(Q, OTHER).issued.token == "other"
    appointed = counter.want(Q)
    assert isinstance(appointed, FetchToken)
    assert appointed.insist
    counter.bring(P, duty, "old")
    assert isinstance(counter.want(R), TokenQueued)
    counter.bring(Q, appointed.fetch, "new")
    assert counter.want(R).issued.token == "new"


def test_who_waits_when_all_are_forgotten_is_appointed() -> None:
    counter = Counter()
    counter.want(P)
    queued = counter.want(Q)
    told = counter.desk.command(ForgetTokens(None))
    (order,) = [one for one in told if isinstance(one, FetchToken)]
    assert order.ticket == queued.ticket


def test_a_process_that_attaches_later_hears_what_is_forgotten() -> None:
    counter = Counter(P, Q)
    counter.fetch()
    counter.desk.command(ForgetTokens(None))
    counter.desk.told.clear()
    told = counter.desk.attach(R)
    assert [one for one in told if isinstance(one, TokensForgotten)]


# --- who is appointed goes --------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Died(), Detached()])
def test_when_the_appointed_process_dies_another_takes_over(event: Any) -> None:
    counter = Counter()
    counter.want(P)
    counter.want(Q)
    (passed,) = counter.desk.say(P, event)
    assert isinstance(passed, FetchToken)
    assert isinstance(counter.want(R), TokenQueued)


def test_when_it_hangs_another_takes_over_and_the_late_token_replaces_nothing_newer() -> None:
    counter = Counter()
    hung = counter.want(P)
    counter.want(Q)
    (passed,) = counter.wait(FETCH_PATIENCE_S)
    assert isinstance(passed, FetchToken)
    counter.bring(Q, passed.fetch, "new", HOUR)
    counter.bring(P, hung.fetch, "old", 2 * HOUR)
    assert counter.want(R).issued.token == "new"


def test_a_late_token_is_welcome_where_there_is_none() -> None:
    counter = Counter()
    hung = counter.want(P)
    counter.wait(FETCH_PATIENCE_S)
    again = counter.want(Q)
    assert isinstance(again, FetchToken)
    counter.want(R)
    (given,) = counter.bring(P, hung.fetch, "late")
    assert given.issued.token == "late"
    counter.bring(Q, again.fetch, "later")
    assert counter.want(R).issued.token == "later"


def test_a_fetch_of_an_earlier_server_is_older_than_any_of_this_one() -> None:
    counter = Counter()
    counter.fetch(text="new")
    counter.bring(Q, 1, "of the last server")
    assert counter.want(R).issued.token == "new"


def test_patience_is_what_the_asker_says() -> None:
    counter = Counter()
    counter.want(P, patience=600.0)
    counter.want(Q, timeout=1000.0)
    assert counter.wait(599) == []
    (passed,) = counter.wait(1)
    assert isinstance(passed, FetchToken)


def test_whoever_was_interrupted_while_asking_is_not_waited_for() -> None:
    counter = Counter()
    appointed = counter.want(P)
    counter.want(Q)
    (passed,) = counter.desk.say(P, CallEnded(appointed.ticket))
    assert isinstance(passed, FetchToken)


def test_who_waits_for_a_token_on_a_connection_that_ends_is_told_to_ask_again() -> None:
    counter = Counter()
    counter.want(P)
    queued = counter.want(Q)
    assert counter.desk.say(Q, CallEnded(queued.ticket)) == [AskAgain(queued.ticket)]
    assert counter.desk.say(Q, CallEnded(queued.ticket)) == []


def test_waiting_ends_with_the_timeout() -> None:
    counter = Counter()
    counter.want(P)
    queued = counter.want(Q, timeout=3.0)
    assert counter.desk.books.next_deadline(counter.desk.clock()) == counter.desk.clock() + 3.0
    (refused,) = counter.wait(3.0)
    assert isinstance(refused, TokenRefused)
    assert refused.ticket == queued.ticket


def test_who_has_gone_away_is_not_appointed() -> None:
    counter = Counter()
    appointed = counter.want(P)
    queued = counter.want(Q)
    counter.desk.say(Q, Abandoned(queued.ticket))
    counter.want(R)
    (passed,) = counter.fail(P, appointed.fetch, 0.0)
    assert passed.ticket != queued.ticket


# --- claims challenges ------------------------------------------------------------------------------------


def test_a_challenge_bypasses_and_replaces_the_token() -> None:
    counter = Counter()
    counter.fetch()
    bad = digest_of("one")
    appointed = counter.want(P, claims="C", bad=bad)
    assert isinstance(appointed, FetchToken)
    assert appointed.claims == "C"
    assert isinstance(counter.want(Q, claims="C", bad=bad), TokenQueued)
    assert counter.want(R).issued.token == "one"  # nobody has refused it to R
    (given,) = counter.bring(P, appointed.fetch, "two")
    assert given.issued.token == "two"
    assert counter.want(R).issued.token == "two"


def test_one_answer_does_for_all_who_bring_the_same_challenge() -> None:
    counter = Counter()
    counter.fetch()
    appointed = counter.want(P, claims="C", bad=digest_of("one"))
    counter.bring(P, appointed.fetch, "two")
    assert counter.want(Q, claims="C", bad=digest_of("one")).issued.token == "two"
    # Another thread of P, whose copy was replaced under its hands.
    assert counter.want(P, claims="C", bad=digest_of("two")).issued.token == "two"
    counter.desk.clock.advance(CHALLENGE_S)
    assert isinstance(counter.want(P, claims="C", bad=digest_of("two")), FetchToken)


def test_a_token_that_was_refreshed_meanwhile_is_no_answer_to_a_challenge() -> None:
    counter = Counter()
    counter.fetch()
    counter.desk.clock.advance(HOUR - 299)
    duty = counter.want(P).duty
    assert isinstance(counter.want(Q, claims="C", bad=digest_of("one")), TokenQueued)
    (passed,) = counter.bring(P, duty, "two")
    assert isinstance(passed, FetchToken)
    assert passed.claims == "C"


def test_who_found_his_copy_expired_gets_another_one() -> None:
    counter = Counter()
    counter.fetch()
    # The machine was suspended: its wall clock says so, the server's clock does not.
    assert isinstance(counter.want(Q, bad=digest_of("one")), FetchToken)


def test_a_token_near_its_end_that_the_issuer_gives_again_is_asked_for_once_for_all() -> None:
    """Sessions in all processes look for another token; each would be appointed in turn, and get the same."""
    counter = Counter()
    counter.fetch()
    near = {"bad": digest_of("one"), "near": True}
    appointed = counter.want(P, **near)
    assert isinstance(appointed, FetchToken)
    assert isinstance(counter.want(Q, **near), TokenQueued)
    (given,) = counter.bring(P, appointed.fetch, "one", 300.0)
    assert given.issued.token == "one"
    assert counter.want(R, **near).issued.token == "one"
    # Whose copy has expired by the wall clock is not content with that.
    expired = counter.want(R, bad=digest_of("one"))
    assert isinstance(expired, FetchToken)
    counter.fail(R, expired.fetch, 1.0)
    counter.wait(REFRESH_AGAIN_S)
    again = counter.want(R, **near)
    assert isinstance(again, FetchToken)
    counter.bring(R, again.fetch, "two", 300.0)
    assert isinstance(counter.want(R, bad=digest_of("two"), near=True), FetchToken)


# --- housekeeping -----------------------------------------------------------------------------------------


def test_what_nobody_needs_is_forgotten_and_expired_tokens_at_once() -> None:
    counter = Counter()
    counter.fetch()
    books = counter.desk.books.tokens
    counter.wait(HOUR - 1)
    (entry,) = books.snapshot(counter.desk.clock())
    assert entry["expires_in"] is None
    counter.wait(KEPT_UNUSED_S)
    assert books.snapshot(counter.desk.clock()) == []
    assert books.next_deadline() == math.inf


def test_a_deadline_is_soon_enough_to_sweep() -> None:
    counter = Counter()
    counter.fetch()
    now = counter.desk.clock()
    assert counter.desk.books.tokens.next_deadline() <= now + SWEEP_S


def test_no_token_is_in_the_snapshot_nor_in_any_repr() -> None:
    counter = Counter()
    appointed = counter.want(P)
    event = TokenFetched(appointed.fetch, KEY, issued("TOP-SECRET"), HOUR, None)
    counter.desk.say(P, event)
    given = counter.want(Q)
    shown = repr(counter.desk.books.tokens.snapshot(0.0)) + repr(event) + repr(given)
    assert given.issued.token == "TOP-SECRET"
    assert "TOP-SECRET" not in shown


def test_the_words_travel() -> None:
    words = [
        WantToken(KEY, Ticket(1), None, "C", "bad", patience=3.0, near=True),
        TokenFetched(5, KEY, Issued("t", 1.0, None, 2.0), 3.0, None),
        TokenFailed(5, KEY, "no", 1.0),
    ]
    reader = server_side_reader()
    assert [one for word in words for one in reader.feed(bytes(encode(word)))] == words
    decisions = [
        TokenGiven(Ticket(1), KEY, Issued("t", 1.0, 2.0, 3.0), 1 << 40, 3.0, 0),
        FetchToken(Ticket(1), KEY, 1 << 40, ""),
        TokenQueued(Ticket(1)),
        TokenRefused(Ticket(1), "no", 1.0),
    ]
    back = process_side_reader()
    assert [one for word in decisions for one in back.feed(bytes(encode(word)))] == decisions


def test_refresh_times() -> None:
    assert refresh_in(HOUR, None) == HOUR - 300
    assert refresh_in(302.0, None) == 151.0
    assert refresh_in(HOUR, 1800.0) == 1800.0
    assert refresh_in(HOUR, 0.0) == REFRESH_AGAIN_S
    assert refresh_in(HOUR, -5.0) == HOUR - 300
    assert refresh_in(HOUR, 2 * HOUR) == HOUR - 300
    assert refresh_in(HOUR, math.nan) == HOUR - 300

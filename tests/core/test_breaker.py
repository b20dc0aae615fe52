"""When opening fails: back-off together, one probe, one success ends it."""

from __future__ import annotations

import pytest

from mppool.core.breaker import FIRST_BACK_OFF_S, MOST_BREAKERS, PROBE_PATIENCE_S, Breakers
from mppool.core.decisions import Grant, Queued, Reclaim, Refuse
from mppool.core.events import Closed, Declined, Opened, OpeningFailed, Reset, Resize
from mppool.core.figures import pool_figures
from mppool.ids import GrantNumber
from tests.core.desk import Desk, P, Q, held
from tests.core.model.parts import POOL


def fail(desk: Desk, process: object = P, key: str = "k") -> GrantNumber:
    number = desk.granted(process, key)  # type: ignore[arg-type]
    desk.say(process, OpeningFailed(number, "no route"))  # type: ignore[arg-type]
    return number


def breaker(desk: Desk, key: str = "k") -> object:
    return desk.pool.breakers.get(key)


def test_with_nothing_working_the_first_failure_opens_the_breaker() -> None:
    desk = Desk(P, Q)
    fail(desk)
    refused = desk.ask(Q)
    assert isinstance(refused, Refuse)
    assert (refused.reason, refused.text) == ("open_failed", "no route")
    assert pool_figures(desk.pool)["breaker"] == "open"


def test_with_something_working_only_the_third_in_a_row_does() -> None:
    desk = Desk(P)
    desk.opened(P)
    fail(desk)
    fail(desk)
    assert pool_figures(desk.pool)["breaker"] == "closed"
    fail(desk)
    assert pool_figures(desk.pool)["breaker"] == "open"


def test_a_probe_that_has_no_result_keeps_nobody_else_for_ever() -> None:
    desk = Desk(P, Q)
    fail(desk)
    desk.wait(FIRST_BACK_OFF_S)
    stopped = desk.granted(P)
    assert isinstance(desk.ask(Q), Refuse)
    desk.wait(PROBE_PATIENCE_S)
    second = desk.granted(Q)
    desk.say(Q, Opened(second, 0.01))
    assert pool_figures(desk.pool)["breaker"] == "closed"
    desk.say(P, OpeningFailed(stopped, "too late to say so"))
    assert pool_figures(desk.pool)["breaker"] == "closed"


def test_a_success_between_failures_starts_the_count_anew() -> None:
    desk = Desk(P)
    desk.opened(P)
    fail(desk)
    fail(desk)
    desk.opened(P)
    fail(desk)
    fail(desk)
    assert pool_figures(desk.pool)["breaker"] == "closed"


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 1.0), (0.5, 0.75), (0.999999, 0.5)])
def test_the_back_off_doubles_from_a_tenth_to_ten_seconds_less_jitter(
    jitter: float, part: float
) -> None:
    desk = Desk(P, jitter=jitter)
    fail(desk)
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0):
        desk.wait(pause * part - 0.001)
        assert isinstance(desk.ask(P), Refuse)
        desk.wait(0.002)
        fail(desk)


def test_when_the_back_off_is_over_exactly_one_may_try() -> None:
    desk = Desk(P, Q)
    fail(desk)
    desk.wait(0.1)
    probe = desk.granted(P)
    assert pool_figures(desk.pool)["breaker"] == "probing"
    assert isinstance(desk.ask(Q), Refuse)
    desk.say(P, Opened(probe, 0.1))
    assert isinstance(desk.ask(Q), Grant)
    assert pool_figures(desk.pool)["breaker"] == "closed"


def test_one_success_forgets_the_back_off() -> None:
    desk = Desk(P)
    fail(desk)
    desk.wait(0.1)
    fail(desk)
    desk.wait(0.2)
    number = desk.opened(P)
    desk.say(P, Closed(number, "discarded"))
    fail(desk)
    desk.wait(0.1)
    assert isinstance(desk.ask(P), Grant)


def test_openings_that_were_granted_together_and_fail_together_are_one_step() -> None:
    desk = Desk(P, max_size=None)
    numbers = [desk.granted(P) for _ in range(8)]
    for number in numbers:
        desk.say(P, OpeningFailed(number, "no route"))
    desk.wait(0.1)
    assert isinstance(desk.ask(P), Grant)


def test_a_late_failure_from_before_the_last_step_says_nothing_new() -> None:
    desk = Desk(P, max_size=None)
    first, late = desk.granted(P), desk.granted(P)
    desk.say(P, OpeningFailed(first, "no route"))
    desk.wait(0.05)
    desk.say(P, OpeningFailed(late, "no route either"))
    desk.wait(0.051)
    assert isinstance(desk.ask(P), Grant)


def test_a_failure_that_says_nothing_about_the_database_is_not_counted() -> None:
    desk = Desk(P)
    desk.say(P, OpeningFailed(desk.granted(P), "KeyboardInterrupt", counted=False))
    assert isinstance(desk.ask(P), Grant)
    assert desk.pool.counters["open_failed"] == 0


@pytest.mark.parametrize(
    "end", [Declined, lambda n: OpeningFailed(n, "interrupted", counted=False)]
)
def test_a_probe_without_a_result_lets_the_next_one_try_at_once(end: object) -> None:
    desk = Desk(P, Q)
    fail(desk)
    desk.wait(0.1)
    probe = desk.granted(P)
    desk.say(P, end(probe))  # type: ignore[operator]
    assert isinstance(desk.ask(Q), Grant)


def test_a_probe_that_dies_with_its_process_lets_the_next_one_try() -> None:
    desk = Desk(P, Q)
    fail(desk)
    desk.wait(0.1)
    desk.granted(P)
    desk.dies(P)
    assert isinstance(desk.ask(Q), Grant)


def test_a_probe_whose_success_only_an_inventory_tells_closes_the_breaker() -> None:
    desk = Desk(P, Q)
    fail(desk)
    desk.wait(0.1)
    probe = desk.granted(P)
    desk.attach(P, [held(probe, "open")])
    assert pool_figures(desk.pool)["breaker"] == "closed"
    assert isinstance(desk.ask(Q), Grant)


def test_one_identity_that_fails_blocks_no_other() -> None:
    desk = Desk(P)
    fail(desk, P, "alice")
    assert isinstance(desk.ask(P, "alice"), Refuse)
    assert isinstance(desk.ask(P, "bob"), Grant)


def test_fail_fast_refuses_those_who_wait() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.granted(P)
    ticket = desk.queue(Q)
    other = desk.queue(Q, "other")
    desk.say(P, OpeningFailed(number, "no route"))
    assert [r.ticket for r in desk.hears(Q, Refuse)] == [ticket]
    assert desk.size() == 1  # the other identity is served
    assert other


def test_fail_fast_lets_those_wait_who_need_no_new_resource() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    for _ in range(3):
        fail(desk)
    desk.opened(P, "other")
    assert isinstance(desk.ask(Q), Queued)


def test_without_fail_fast_everybody_waits_and_is_served_when_it_works_again() -> None:
    desk = Desk(P, Q, fail_fast=False)
    fail(desk)
    first = desk.queue(P)
    second = desk.queue(Q)
    desk.wait(0.1)
    (probe,) = desk.hears(P, Grant)
    assert probe.ticket == first
    assert not desk.hears(Q, Grant)
    desk.say(P, Opened(probe.number, 0.1))
    assert [g.ticket for g in desk.hears(Q, Grant)] == [second]


def test_without_fail_fast_the_end_of_a_long_back_off_is_a_deadline() -> None:
    desk = Desk(P, fail_fast=False)
    for pause in (0.1, 0.2, 0.4, 0.8):
        fail(desk)
        desk.wait(pause + 0.001)
    fail(desk)
    ticket = desk.queue(P)
    desk.wait(1.601)
    assert [g.ticket for g in desk.hears(P, Grant)] == [ticket]


def test_without_fail_fast_a_waiter_keeps_to_its_timeout() -> None:
    desk = Desk(P, fail_fast=False)
    fail(desk)
    desk.queue(P, timeout=0.05)
    desk.wait(0.06)
    assert [r.reason for r in desk.hears(P, Refuse)] == ["timeout"]


def test_a_reset_forgets_the_back_off() -> None:
    desk = Desk(P)
    fail(desk)
    desk.command(Reset(POOL))
    assert isinstance(desk.ask(P), Grant)


# --- many of them ------------------------------------------------------------------------------------------


class CountedBreakers(Breakers):
    """Counts how many breakers are looked at one after the other."""

    looked_at = 0

    def items(self) -> object:  # type: ignore[override]
        for item in list(super().items()):
            CountedBreakers.looked_at += 1
            yield item

    def values(self) -> object:  # type: ignore[override]
        for value in list(super().values()):
            CountedBreakers.looked_at += 1
            yield value


def test_the_number_of_breakers_is_bounded() -> None:
    desk = Desk(P, max_size=None)
    for number in range(MOST_BREAKERS + 50):
        fail(desk, P, f"k\0bad{number}")
    assert len(desk.pool.breakers) == MOST_BREAKERS
    assert breaker(desk, "k\0bad0") is None
    assert breaker(desk, f"k\0bad{MOST_BREAKERS + 49}") is not None


def test_no_event_looks_at_all_breakers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mppool.core.pool.Breakers", CountedBreakers)
    desk = Desk(P, Q, max_size=None, fail_fast=False)
    for number in range(500):
        fail(desk, P, f"k\0bad{number}")
    desk.command(Resize(POOL, 1, True, None))
    number = desk.opened(P)
    CountedBreakers.looked_at = 0
    events = 0
    for _ in range(50):
        desk.queue(Q)
        desk.wait(0.01)
        desk.brings_back(P, number)
        desk.say(P, Closed(number, "moved"))
        (grant,) = desk.hears(Q, Grant)
        desk.say(Q, Opened(grant.number, 0.01))
        desk.say(Q, Closed(grant.number, "discarded"))
        number = desk.opened(P)
        events += 7
    assert CountedBreakers.looked_at <= 16 * events


def test_those_who_wait_for_a_broken_identity_take_nothing_from_others() -> None:
    """However many wait, and whenever they came: before the breaker opened, or while it was open."""
    desk = Desk(P, Q, max_size=2, fail_fast=False)
    fail(desk, P, "bad")
    held_by_p = [desk.opened(P), desk.opened(P)]
    for _ in range(3):
        desk.queue(Q, "bad")
    desk.forget()
    desk.wait(0.01)
    assert not desk.hears(P, Reclaim)  # nobody can use what would come
    desk.queue(Q)
    desk.wait(0.15)
    assert [reclaim.contended for reclaim in desk.hears(P, Reclaim)][:1] == [True]
    assert held_by_p

"""What opening a resource lately takes, as far as the books know."""

from __future__ import annotations

import pytest

from mppool.core.events import Opened
from mppool.core.sharing import MOST_MEASURED_KEYS, UNKNOWN_OPENING_S, OpeningTimes
from tests.core.desk import Desk, P
from tests.core.test_sharing import LOGIN_S


def test_before_anything_was_opened_a_cost_is_assumed() -> None:
    times = OpeningTimes()
    assert times.of("alice") == UNKNOWN_OPENING_S
    assert times.measured() == 0.0


def test_what_an_opening_costs_is_the_mean_of_the_last_ones() -> None:
    times = OpeningTimes()
    times.note("alice", 1.0)
    assert times.of("alice") == times.measured() == 1.0
    for _ in range(20):
        times.note("alice", 0.1)
    assert times.of("alice") == pytest.approx(0.1, abs=0.01)


def test_what_an_opening_costs_is_known_by_key_and_elsewhere_assumed_to_be_the_same() -> None:
    times = OpeningTimes()
    times.note("alice", 1.0)
    times.note("bob", 0.1)
    assert (times.of("alice"), times.of("bob")) == (1.0, 0.1)
    assert 0.1 < times.of("carol") < 1.0


def test_opening_times_of_keys_that_nobody_opens_any_more_are_forgotten() -> None:
    times = OpeningTimes()
    times.note("alice", 5.0)
    for number in range(MOST_MEASURED_KEYS - 1):
        times.note(f"key {number}", 1.0)
    assert times.of("alice") == 5.0
    times.note("one more", 1.0)
    assert times.of("alice") < 5.0


def test_a_grant_says_what_openings_lately_take() -> None:
    desk = Desk(P, max_size=2)
    first = desk.ask(P)
    desk.say(P, Opened(first.number, LOGIN_S))
    assert (first.opening_s, desk.ask(P).opening_s) == (0.0, LOGIN_S)


def test_the_least_opening_time_follows_the_keys() -> None:
    times = OpeningTimes()
    assert times.least == UNKNOWN_OPENING_S
    times.note("alice", 0.01)
    times.note("bob", 0.02)
    assert times.least == 0.01
    for _ in range(50):
        times.note("alice", 5.0)
    assert times.least == pytest.approx(0.02)
    for _ in range(50):
        times.note("bob", 5.0)
    assert times.least == UNKNOWN_OPENING_S

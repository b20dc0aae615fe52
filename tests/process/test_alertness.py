"""When waiting awake pays."""

from __future__ import annotations

from mppool.process.alertness import BRISK, MOST_BRISK, Alertness


def _sleep_briefly(alertness: Alertness, times: int) -> None:
    for _ in range(times):
        assert not alertness.is_awake
        alertness.has_slept(briefly=True)


def test_short_sleeps_in_a_row_are_followed_by_a_wait_that_begins_awake() -> None:
    alertness = Alertness()
    _sleep_briefly(alertness, BRISK)
    assert alertness.is_awake
    alertness.has_paid()
    assert alertness.is_awake, "and so do those after it"


def test_a_long_sleep_begins_the_counting_again() -> None:
    alertness = Alertness()
    _sleep_briefly(alertness, BRISK - 1)
    alertness.has_slept(briefly=False)
    _sleep_briefly(alertness, BRISK)
    assert alertness.is_awake


def test_what_was_in_vain_is_tried_again_half_as_often_each_time_but_not_never() -> None:
    alertness = Alertness()
    needed = BRISK
    for _ in range(10):
        _sleep_briefly(alertness, needed)
        assert alertness.is_awake
        alertness.was_in_vain()
        needed = min(2 * needed, MOST_BRISK)
    assert needed == MOST_BRISK
    _sleep_briefly(alertness, MOST_BRISK)
    alertness.has_paid()
    alertness.begin_again()
    _sleep_briefly(alertness, BRISK)
    assert alertness.is_awake, "it did pay in between"


def test_something_else_that_comes_is_no_failure() -> None:
    alertness = Alertness()
    _sleep_briefly(alertness, BRISK)
    alertness.begin_again()
    _sleep_briefly(alertness, BRISK)
    assert alertness.is_awake

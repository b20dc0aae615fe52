"""Options: every one with good and bad values, and errors that help."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from mppool.errors import ConfigurationError
from mppool.options import (
    OPTION_NAMES,
    PoolOptions,
    checked_linger,
    checked_name,
    checked_options,
    checked_timeout,
)

COUNT = [1, 10, 1_000_000]
NO_COUNT_OR_0 = [-1, 1.0, 2.5, "3", True, False, math.nan, math.inf, [1], 10**7, -math.inf, b"1"]
SECONDS = [0.001, 1, 30.0, 10**9]
NO_COUNT = [0, *NO_COUNT_OR_0]
NO_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, 1e10, "30", True, False, [], object()]
TEXT = [None, 1, "", "LIFO", b"lifo", True]

# option: allowed values, refused values
TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "max_size": ([*COUNT, None], NO_COUNT),
    "min_size": ([0, 1, 10], [*NO_COUNT_OR_0, None]),
    "max_per_identity": ([1, 10, None], NO_COUNT),
    "max_per_process": ([1, 10, None], NO_COUNT),
    "timeout": ([*SECONDS, 0, 0.0, None], NO_SECONDS),
    "max_waiting": ([0, 1, None], NO_COUNT_OR_0),
    "max_uses": ([*COUNT, None], NO_COUNT),
    "max_idle": ([*SECONDS, None], [*NO_SECONDS, 0, 0.0]),
    "max_lifetime": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "max_lease_warn": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "max_lease_kill": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "check_interval": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "check_idle_for": ([*SECONDS, 0, None], NO_SECONDS),
    "order": (["lifo", "fifo"], [*TEXT, "random"]),
    "placement": (["worker", "host"], [*TEXT, "server"]),
    "hosts": ([1, 4], [*NO_COUNT, None, 257]),
    "fail_fast": ([True, False], [None, 0, 1, "yes"]),
    "max_opening": ([*COUNT, None], NO_COUNT),
    "track_leaks": ([True, False], [None, 0, 1, "yes"]),
    "keep": ([True, False], [None, 0, 1, "yes"]),
    "guard": ([True, False, None], [0, 1, "yes"]),
    "prefill": ([True, False], [None, 0, 1, "yes"]),
    "check_timeout": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "budget": (["db", None], [1, "", "a b", b"db", True, ["db"]]),
    "lanes": (
        [{"web": 4}, {"web": 4, "batch": 6}, None],
        [{}, "web", ["web"], {"web": 0}, {"web": "4"}, {"web": True}, {"a b": 1}, {"": 1}, {1: 1}],
    ),
    "values": (["plain", "pickle"], [*TEXT, "json"]),
    "max_quiet": ([*SECONDS, None], [*NO_SECONDS, 0]),
    "host_max_uses": ([*COUNT, None], NO_COUNT),
    "host_max_memory": ([*COUNT, None], NO_COUNT),
    "wait_warn": ([*SECONDS, None], [*NO_SECONDS, 0]),
}
WITH_HOSTS = ("hosts", "values", "max_quiet", "host_max_uses", "host_max_memory")

GOOD = [(name, value) for name, (good, _) in TABLE.items() for value in good]
BAD = [(name, value) for name, (_, bad) in TABLE.items() for value in bad]


def test_the_table_has_every_option() -> None:
    assert set(TABLE) == set(OPTION_NAMES)


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_an_allowed_value_is_taken(name: str, value: Any) -> None:
    placement = {"placement": "host"} if name in WITH_HOSTS else {}
    assert getattr(checked_options("p", {**placement, name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_naming_option_value_and_what_is_allowed(
    name: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        checked_options("orders", {name: value})
    text = str(refused.value)
    assert "'orders'" in text
    assert f"{name}={value!r:.80} is not allowed" in text
    assert "give" in text


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ("max_sise", "max_size"),
        ("maxsize", "max_size"),
        ("timeouts", "timeout"),
        ("min-size", "min_size"),
        ("pool_size", "max_size"),
        ("pool_recycle", "max_lifetime"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(given: str, suggested: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean '{suggested}'"):
        checked_options("p", {given: 1})


def test_an_unknown_option_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(ConfigurationError) as refused:
        checked_options("p", {"zzz": 1})
    assert "did you mean" not in str(refused.value)
    assert all(name in str(refused.value) for name in OPTION_NAMES)


@pytest.mark.parametrize("name", ["min_size", "max_per_identity", "max_per_process"])
def test_bounds_within_the_cap_may_not_be_above_it(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=3.*max_size=2"):
        checked_options("p", {"max_size": 2, name: 3})
    assert checked_options("p", {"max_size": 3, name: 3})
    assert checked_options("p", {"max_size": None, name: 3})


def test_options_are_frozen_comparable_and_travel() -> None:
    options = checked_options("p", {"max_size": 3, "timeout": 1})
    assert options == checked_options("p", {"max_size": 3, "timeout": 1.0})
    assert options != PoolOptions()
    with pytest.raises(AttributeError):
        options.max_size = 4  # type: ignore[misc]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=PoolOptions) == options


def test_the_defaults_are_those_of_the_design() -> None:
    options = PoolOptions()
    assert (options.max_size, options.timeout, options.max_idle, options.max_lifetime) == (
        10,
        30.0,
        600,
        3600,
    )
    assert (options.order, options.placement, options.fail_fast) == ("lifo", "worker", True)
    assert checked_options("p", {}) == options


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, None])
def test_a_timeout_of_a_call(value: Any) -> None:
    assert checked_timeout("p", value) == value


@pytest.mark.parametrize("value", NO_SECONDS)
def test_a_bad_timeout_of_a_call(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pool 'p': timeout=.* is not allowed"):
        checked_timeout("p", value)


@pytest.mark.parametrize("value", [*NO_SECONDS, None])
def test_a_bad_linger(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"manager 'shop': linger=.* is not allowed"):
        checked_linger("shop", value)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64, "..a"])
def test_a_name(name: str) -> None:
    assert checked_name("pool", name) == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", "ä", "x" * 65, ".", "..", "a\n", "\0", None, 3, b"a"]
)
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="pool name"):
        checked_name("pool", name)


def test_nothing_is_kept_and_a_minimum_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="keep=False"):
        checked_options("p", {"min_size": 1, "keep": False})
    assert checked_options("p", {"min_size": 1, "keep": False, "prefill": False}).min_size == 1

"""The options of a pool: validated when they are declared, frozen, comparable between processes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from mppool.errors import ConfigurationError

LONGEST_S = 9_000_000_000.0
"""Locks and sockets cannot wait for longer than 292 years."""

MOST_HOSTS = 256

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def checked_name(kind: str, name: object) -> str:
    """The name of a manager or of a pool, or ConfigurationError.

    Names become file names, metric labels and words of a command line, so the alphabet is narrow.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.strip(".") == "":
        raise ConfigurationError(
            f"the {kind} name is {name!r:.100}; use 1 to 64 letters, digits, '.', '_' or '-' "
            "(not dots alone)"
        )
    return name


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a pool. All durations are seconds.

    max_size: resources open at once, over all processes and identities; None: no cap.
    min_size: resources kept open over all processes.
    max_per_identity, max_per_process: further bounds within `max_size`; None: no bound.
    timeout: how long a checkout waits by default; None: no limit; 0: not at all.
    max_waiting: how many checkouts may wait; further ones are refused at once. None: no bound.
    max_uses: checkouts after which a resource is replaced; None: never.
    max_idle: idle time after which a resource is closed, never below `min_size`; None: never.
    max_lifetime: age after which a resource is replaced; None: never. Each ends up to 10 % earlier, at random,
        so that resources that were opened together do not end together.
    max_lease_warn: age of a lease at which a warning is logged; None: never.
    max_lease_kill: age of a lease at which its resource is closed; None: never.
    check_interval: time between background checks of idle resources; None: no such checks.
    check_idle_for: a resource that was idle for longer is checked at checkout; None: never.
    check_timeout: a check that takes longer is abandoned; the resource, and everything that is as old, is replaced.
        None: checks may take any time, and run in the thread of the caller.
    order: "lifo" hands out the most recently used resource, "fifo" the one idle for longest.
    placement: "worker" opens resources in the process that uses them; "host" opens them in a process of its own, and all
        workers drive them through proxies.
    hosts: how many such processes there are at most.
    fail_fast: while the circuit breaker is open, raise the last error at once instead of waiting.
    max_opening: how many resources are opened at a time, over all processes; None: no bound of its own. An opening
        that takes longer than 30 s no longer counts.
    track_leaks: remember the stack of every checkout, for warnings and leak reports (slow).
    wait_warn: a checkout that waits for longer is logged as a warning that names the holders; None: no warning.
    guard: True: hand out a thin proxy, which is dead after the release, and so are its cursors; a resource that a user
        has changed for good is closed. None: what the recipe says (`Recipe.guard`), which is False for all of mppool's.
    keep: False: nothing stays idle; what is released is closed, unless a checkout waits for it.
    prefill: False: `min_size` resources are kept once they are open, but none is opened in advance.
    values: with hosts: "plain" sends only values of Python's own types to them, "pickle" sends others too, by pickle.
    max_quiet: with hosts: a lease ends if its worker says nothing for longer; None: never.
    host_max_uses, host_max_memory: a host that has lent this often, or has more memory (MiB, resident), is replaced by
        a new one; None: never.
    lanes: how many resources are reserved for each lane (`checkout(lane=...)`); a reserve that nobody wants is lent to
        the others. None: no lanes.
    budget: the name of the budget (`manager.budget`) that the pool shares with others; None: none.
    """

    max_size: int | None = 10
    min_size: int = 0
    max_per_identity: int | None = None
    max_per_process: int | None = None
    timeout: float | None = 30.0
    max_waiting: int | None = None
    max_uses: int | None = None
    max_idle: float | None = 600.0
    max_lifetime: float | None = 3600.0
    max_lease_warn: float | None = None
    max_lease_kill: float | None = None
    check_interval: float | None = None
    check_idle_for: float | None = 0.5
    order: str = "lifo"
    placement: str = "worker"
    hosts: int = 1
    fail_fast: bool = True
    track_leaks: bool = False
    max_opening: int | None = None
    keep: bool = True
    guard: bool | None = None
    prefill: bool = True
    check_timeout: float | None = 5.0
    values: str = "plain"
    max_quiet: float | None = None
    wait_warn: float | None = None
    budget: str | None = None
    lanes: dict[str, int] | None = None
    host_max_uses: int | None = None
    host_max_memory: int | None = None


OPTION_NAMES = PoolOptions.__struct_fields__


def checked_options(pool: str, given: dict[str, Any]) -> PoolOptions:
    """PoolOptions from keyword arguments, or ConfigurationError naming option, value and what is allowed."""
    for name in given:
        if name not in OPTION_NAMES:
            raise ConfigurationError(f"pool {pool!r}: {_unknown(name)}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values[name] = _RULES[name](value)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"pool {pool!r}: {name}={value!r:.80} is not allowed: {error}"
            ) from None
    options = PoolOptions(**values)
    _check_together(pool, options)
    return options


def checked_whole(what: str, value: object, at_least: int) -> int:
    """A whole number, or ConfigurationError. what: of whom, and which option."""
    try:
        return _whole(value, at_least)
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}={value!r:.80} is not allowed: {error}") from None


def changes(before: PoolOptions, after: PoolOptions) -> str:
    """What differs, for people."""
    return ", ".join(
        f"{name}={getattr(before, name)!r} became {getattr(after, name)!r}"
        for name in OPTION_NAMES
        if getattr(before, name) != getattr(after, name)
    )


def checked_linger(manager: str, value: object) -> float:
    """How long a server stays that nobody uses, or ConfigurationError."""
    try:
        seconds = _seconds(value)
    except ConfigurationError:
        seconds = None
    if seconds is None:
        raise ConfigurationError(
            f"manager {manager!r}: linger={value!r:.80} is not allowed: give a finite number of seconds, 0 or more"
        )
    return seconds


def checked_label(manager: str, label: object) -> str:
    """What a process is called, or ConfigurationError."""
    if not isinstance(label, str) or not label or len(label) > 100 or not label.isprintable():
        raise ConfigurationError(
            f"manager {manager!r}: label={label!r:.80} is not allowed: give 1 to 100 printable characters"
        )
    return label


def checked_lease_label(pool: str, label: object) -> str:
    """What a checkout is for, or ConfigurationError."""
    if not isinstance(label, str) or not label or len(label) > 100 or not label.isprintable():
        raise ConfigurationError(
            f"pool {pool!r}: label={label!r:.80} is not allowed: give 1 to 100 printable characters, or None"
        )
    return label


def checked_over(pool: str, value: object) -> float:
    """Over how many seconds a reset is spread, or ConfigurationError."""
    try:
        seconds = _seconds(value)
    except ConfigurationError:
        seconds = None
    if seconds is None:
        raise ConfigurationError(
            f"pool {pool!r}: over={value!r:.80} is not allowed: give a finite number of seconds, 0 or more"
        )
    return seconds


def checked_timeout(pool: str, value: object) -> float | None:
    """The timeout of one call in seconds (None: for ever), or ConfigurationError."""
    try:
        return _seconds(value)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"pool {pool!r}: timeout={value!r:.80} is not allowed: {error}"
        ) from None


_WITH_HOSTS: tuple[tuple[str, Any], ...] = (
    *(("hosts", 1), ("values", "plain"), ("max_quiet", None)),
    *(("host_max_uses", None), ("host_max_memory", None)),
)
"""Options of pools with hosts, and what they are elsewhere."""


def _check_together(pool: str, options: PoolOptions) -> None:
    if options.placement != "host":
        for name, default in _WITH_HOSTS:
            if getattr(options, name) != default:
                raise ConfigurationError(
                    f"pool {pool!r}: {name}={getattr(options, name)!r} is not allowed together with "
                    f"placement={options.placement!r}: it goes with placement='host'; leave it out, or say that"
                )
    if options.min_size and options.prefill and not options.keep:
        raise ConfigurationError(
            f"pool {pool!r}: min_size={options.min_size} is not allowed together with keep=False, which "
            "keeps nothing open here; leave one of them out, or say prefill=False"
        )
    if options.lanes is not None:
        _check_lanes(pool, options.lanes, options.max_size)
    bounds = {
        "min_size": options.min_size,
        "max_per_identity": options.max_per_identity,
        "max_per_process": options.max_per_process,
    }
    for name, bound in bounds.items():
        if bound is not None and options.max_size is not None and bound > options.max_size:
            raise ConfigurationError(
                f"pool {pool!r}: {name}={bound} is not allowed: it is more than max_size="
                f"{options.max_size}; lower {name} or raise max_size"
            )


def _check_lanes(pool: str, lanes: dict[str, int], max_size: int | None) -> None:
    if max_size is None:
        raise ConfigurationError(
            f"pool {pool!r}: lanes={lanes} is not allowed without a cap: what is reserved is reserved of max_size"
        )
    if sum(lanes.values()) > max_size:
        raise ConfigurationError(
            f"pool {pool!r}: lanes={lanes} is not allowed: {sum(lanes.values())} are reserved, which is more than "
            f"max_size={max_size}; reserve fewer or raise max_size"
        )


# What other pools call it, where the spelling alone does not lead to ours.
_ELSEWHERE = {
    "pool_size": "max_size",
    "size": "max_size",
    "maxconnections": "max_size",
    "max_connections": "max_size",
    "pool_timeout": "timeout",
    "pool_recycle": "max_lifetime",
    "pool_pre_ping": "check_idle_for",
    "pre_ping": "check_idle_for",
}


def _unknown(name: str) -> str:
    import difflib  # nobody makes mistakes in production

    if name == "credential":
        return (
            "a credential belongs to the recipe (OdbcRecipe(..., credential=...)) or to a checkout "
            "(pool.checkout(credential=...)), and needs a recipe that opens with tokens"
        )
    close = difflib.get_close_matches(name, OPTION_NAMES, n=1)
    meant = _ELSEWHERE.get(name) or (close[0] if close else None)
    hint = f"; did you mean {meant!r}?" if meant else "."
    return f"there is no option {name!r}{hint} The options are {', '.join(OPTION_NAMES)}"


def _whole(value: object, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(f"give a whole number, {at_least} or more")
    if value > 1_000_000:
        raise ConfigurationError("give at most 1000000, or None where the option may be unbounded")
    return value


def _optional_whole(at_least: int) -> Callable[[object], int | None]:
    def rule(value: object) -> int | None:
        if value is None:
            return None
        try:
            return _whole(value, at_least)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}, or None for no bound") from None

    return rule


def _seconds(value: object, *, zero: bool = True) -> float | None:
    if value is None:
        return None
    least = "0 or more" if zero else "more than 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"give a number of seconds, {least}, or None for no limit")
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        raise ConfigurationError(f"give a finite number of seconds, {least}, or None for no limit")
    if seconds > LONGEST_S:
        raise ConfigurationError(f"give at most {LONGEST_S:.0f} seconds, or None for no limit")
    return seconds


def _positive_seconds(value: object) -> float | None:
    return _seconds(value, zero=False)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError("give True or False")
    return value


def _optional_flag(value: object) -> bool | None:
    if value is None:
        return None
    try:
        return _flag(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, or None for the default") from None


def _one_of(*allowed: str) -> Callable[[object], str]:
    def rule(value: object) -> str:
        if value not in allowed:
            raise ConfigurationError(f"give one of {', '.join(map(repr, allowed))}")
        return str(value)

    return rule


def _hosts(value: object) -> int:
    hosts = _whole(value, 1)
    if hosts > MOST_HOSTS:
        raise ConfigurationError(f"give at most {MOST_HOSTS}")
    return hosts


def _word(value: object) -> str:
    try:
        return checked_name("", value)
    except ConfigurationError:
        raise ConfigurationError(
            f"give a name of 1 to 64 letters, digits, '.', '_' or '-' instead of {value!r:.80}"
        ) from None


def _lanes(value: object) -> dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ConfigurationError(
            'give a dict of names and numbers, for example {"web": 4}, or None for no lanes'
        )
    for name, right in value.items():
        _word(name)
        try:
            _whole(right, 1)
        except ConfigurationError as error:
            raise ConfigurationError(f"for lane {name!r}: {error}") from None
    return dict(value)


_RULES: dict[str, Callable[[object], Any]] = {
    "max_size": _optional_whole(1),
    "min_size": lambda value: _whole(value, 0),
    "max_per_identity": _optional_whole(1),
    "max_per_process": _optional_whole(1),
    "timeout": _seconds,
    "max_waiting": _optional_whole(0),
    "max_uses": _optional_whole(1),
    "max_idle": _positive_seconds,
    "max_lifetime": _positive_seconds,
    "max_lease_warn": _positive_seconds,
    "max_lease_kill": _positive_seconds,
    "check_interval": _positive_seconds,
    "check_idle_for": _seconds,
    "order": _one_of("lifo", "fifo"),
    "placement": _one_of("worker", "host"),
    "hosts": _hosts,
    "fail_fast": _flag,
    "track_leaks": _flag,
    "max_opening": _optional_whole(1),
    "keep": _flag,
    "guard": _optional_flag,
    "prefill": _flag,
    "check_timeout": _positive_seconds,
    "values": _one_of("plain", "pickle"),
    "max_quiet": _positive_seconds,
    "host_max_uses": _optional_whole(1),
    "host_max_memory": _optional_whole(1),
    "wait_warn": _positive_seconds,
    "lanes": _lanes,
    "budget": lambda value: None if value is None else _word(value),
}

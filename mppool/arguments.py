"""The keyword arguments of `manager.pool`, for type checkers and editors: a misspelt option is theirs to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from mppool.worker.budget import Budget


class PoolArguments(TypedDict, total=False):
    """Options of a pool (see PoolOptions, which checks them at run time), and hooks beside a plain callable."""

    max_size: int | None
    min_size: int
    max_per_identity: int | None
    max_per_process: int | None
    timeout: float | None
    max_waiting: int | None
    max_uses: int | None
    max_idle: float | None
    max_lifetime: float | None
    max_lease_warn: float | None
    max_lease_kill: float | None
    check_interval: float | None
    check_idle_for: float | None
    order: Literal["lifo", "fifo"]
    placement: Literal["worker", "host"]
    hosts: int
    fail_fast: bool
    track_leaks: bool
    max_opening: int | None
    keep: bool
    guard: bool | None
    prefill: bool
    check_timeout: float | None
    values: Literal["plain", "pickle"]
    max_quiet: float | None
    host_max_uses: int | None
    host_max_memory: int | None
    wait_warn: float | None
    budget: Budget | None
    lanes: dict[str, int] | None
    # Beside a callable that opens a resource; a Recipe has them as methods.
    configure: Callable[[Any], Any] | None
    on_checkout: Callable[[Any], Any] | None
    reset: Callable[[Any], Any] | None
    check: Callable[[Any], Any] | None
    close: Callable[[Any], Any] | None
    stats: Callable[[Any], Any] | None
    describe: Callable[[Any], Any] | None
    cancel: Callable[[Any], Any] | None
    open_in_caller: bool


class AsyncPoolArguments(PoolArguments, total=False):
    """The same for `manager.apool`; hooks may be coroutine functions there."""

    abandon: Callable[[Any], Any] | None

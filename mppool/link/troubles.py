"""What the system refuses a process: told as PoolErrors that say the way out."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mppool.errors import ConfigurationError, PoolError, ServerUnavailable

LACKING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the system is short of, whatever is tried next."""

F = TypeVar("F", bound=Callable[..., Any])


def no_answer(manager: str) -> ServerUnavailable:
    """What to raise where the server is there, and says nothing."""
    return ServerUnavailable(
        f"manager {manager!r}: the server does not answer; it is stopped, or the machine is overloaded. Try "
        "again, or look at it with `mppool doctor`"
    )


def pool_error(manager: str, error: Exception) -> PoolError | None:
    """The PoolError for what the system has refused; None: it is something else."""
    if isinstance(error, (PoolError, TimeoutError)):
        return None
    if isinstance(error, OSError):
        return ServerUnavailable(f"manager {manager!r}: {of_system(error)}")
    if isinstance(error, RuntimeError) and ("thread" in str(error) or "shutdown" in str(error)):
        return ServerUnavailable(
            f"manager {manager!r}: no thread can be started in this process ({error}): end threads, or raise the limit "
            "of processes (ulimit -u, pids.max of the cgroup); at the end of the interpreter, and in a subinterpreter "
            "without daemon threads, nothing can be checked out any more"
        )
    if isinstance(error, UnicodeError):
        return ConfigurationError(
            f"manager {manager!r}: a text that has to be sent to other processes cannot be encoded ({error}): leave "
            "half surrogates out of identities, labels and names"
        )
    return None


def of_system(error: OSError) -> str:
    """What the system has refused, and the way out, for people."""
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return (
            f"no descriptor is left ({error.strerror}): close what leaks, or raise the limit of open files "
            "(ulimit -n)"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            f"this process may not do what a pool needs ({error}): a process that changes its user must do so before it "
            "first uses the pool, or fork afterwards"
        )
    if error.errno in {errno.ENOMEM, errno.ENOSPC, errno.ENOBUFS}:
        return f"the system has run out of something ({error}): make room, and try again"
    return f"the system has refused what a pool needs ({error}); look at it with `mppool doctor`"


def pool_errors_only(method: F) -> F:
    """A method of something that has a `manager_name`: what the system refuses leaves it as a PoolError."""

    @functools.wraps(method)
    def wrapped(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(self, *arguments, **keywords)
        except (OSError, RuntimeError, UnicodeError) as error:
            told = pool_error(self.manager_name, error)
            if told is None:
                raise
            raise told from error

    return cast("F", wrapped)

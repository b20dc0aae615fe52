"""Log lines that cost nobody more than themselves.

A log handler is somebody else's code: it may raise, take its time, or use the very pool that has something to say.
So what it does must not come between taking a thing and finishing with it:

- whatever a handler raises is printed, as the standard library's handlers do, and goes no further;
- within a block `afterwards()` lines are only noted. They reach the handlers when the outermost block has ended, and
  with it whatever was being done;
- the background thread, for which others wait, hands its lines to other threads: `handed_to(...)`;
- what a thread would log while it is in a handler already is left out. Else a handler that uses a pool would be
  called for what it has caused itself, without end.

Equal warnings and errors reach the handlers once a minute, because a database that is away would else fill a disk. A line
that is about a pool or a manager has its name as a field of its record, for those who write JSON.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

Sink = Callable[[Callable[[], None]], None]

EQUAL_LINES_S = 60.0
"""Equal warnings of one process are this far apart, at least."""

_MOST_TEXTS = 500
"""Of so many texts it is known when they were logged."""


class _Here(threading.local):
    """What a thread is in the middle of.

    noted: lines for the end of the outermost block; None: it is in no block.
    """

    noted: deque[Callable[[], None]] | None = None
    sink: Sink | None = None
    is_logging = False


_here = _Here()


class afterwards:  # noqa: N801  # used as a function
    """A block whose lines are logged when it has ended."""

    __slots__ = ("_is_outermost",)

    def __enter__(self) -> None:
        self._is_outermost = _here.noted is None and _here.sink is None
        if self._is_outermost:
            _here.noted = deque()

    def __exit__(self, *_: object) -> None:
        if self._is_outermost:
            noted, _here.noted = _here.noted, None
            while noted:
                noted.popleft()()


def interrupted() -> None:
    """The calling thread was interrupted somewhere in here, and has left: it is in no block any more.

    A block whose end was interrupted would else keep all lines of its thread, for ever.
    """
    noted, _here.noted = _here.noted, None
    while noted:
        noted.popleft()()


def logged_afterwards(function: F) -> F:
    """A function whose lines are logged when it has ended."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if _here.noted is not None or _here.sink is not None:
            # The call that began the outermost block ends it.
            return function(*arguments, **keywords)
        with afterwards():
            return function(*arguments, **keywords)

    return cast("F", wrapped)


@contextmanager
def handed_to(sink: Sink) -> Iterator[None]:
    """A block whose lines are logged by somebody else: `sink` is given a function for each."""
    before, _here.sink = _here.sink, sink
    try:
        yield
    finally:
        _here.sink = before


# When what was logged, and how many equal lines were left out since: by a hash, because texts may be long, and errors may say what
# nobody should keep. No lock guards it: two threads that say the same at once may both be heard.
_said: dict[int, tuple[float, int]] = {}


def hear_everything() -> None:
    """A manager begins: nothing that was said before keeps its lines from being logged."""
    _said.clear()


def _is_new(record: logging.LogRecord) -> bool:
    """Whether nothing equal was logged in the last minute. The first after those that were left out says how many."""
    text, now = record.getMessage(), monotonic()
    # With the process: a child has a copy of all this, and has said nothing yet.
    key = hash((os.getpid(), record.name, text, _shown(record.exc_info)))
    at, left_out = _said.get(key, (now - EQUAL_LINES_S, 0))
    if now - at < EQUAL_LINES_S:
        _said[key] = (at, left_out + 1)
        return False
    if len(_said) >= _MOST_TEXTS:
        _said.clear()
    _said[key] = (now, 0)
    if left_out:
        record.msg, record.args = f"{text} ({left_out} equal lines were left out)", ()
    return True


def _shown(exc_info: Any) -> str:
    """What was raised, as far as it can be shown."""
    if not exc_info:
        return ""
    error = exc_info[1]
    try:
        return repr(error)
    except Exception:  # noqa: BLE001  # it is the application's own class
        return type(error).__name__


class Log:
    """A logger of the standard library as this library uses it. The same methods, and no more.

    each: the line is said once of each lease or resource, so one that is equal says something else.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # the standard library's name
        """See logging.Logger."""
        return self._logger.isEnabledFor(level)

    def debug(self, text: str, *arguments: Any, **more: Any) -> None:
        """See logging.Logger, as for all that follow."""
        self._say(logging.DEBUG, text, arguments, **more)

    def info(self, text: str, *arguments: Any, **more: Any) -> None:
        """Something that happens in the life of a pool."""
        self._say(logging.INFO, text, arguments, **more)

    def warning(self, text: str, *arguments: Any, **more: Any) -> None:
        """Something that somebody should look at."""
        self._say(logging.WARNING, text, arguments, **more)

    def error(self, text: str, *arguments: Any, **more: Any) -> None:
        """Something that failed."""
        self._say(logging.ERROR, text, arguments, **more)

    def exception(self, text: str, *arguments: Any) -> None:
        """Something that failed, with its traceback."""
        self._say(logging.ERROR, text, arguments, exc_info=True)

    def log(self, level: int, text: str, *arguments: Any, **more: Any) -> None:
        """At any level."""
        self._say(level, text, arguments, **more)

    def _say(
        self,
        level: int,
        text: str,
        arguments: tuple[Any, ...],
        *,
        exc_info: Any = None,
        each: bool = False,
    ) -> None:
        logger = self._logger
        if _here.is_logging or not logger.isEnabledFor(level):
            return
        if exc_info is True:
            exc_info = sys.exc_info()
        elif isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        caller = sys._getframe(2)
        record = logger.makeRecord(
            logger.name, level, caller.f_code.co_filename, caller.f_lineno, text, arguments,
            exc_info or None, caller.f_code.co_name,
        )  # fmt: skip
        del caller
        for about in ("pool", "manager"):
            if arguments and text.startswith(f"{about} %r"):
                setattr(record, f"mppool_{about}", arguments[0])
        if _here.noted is not None:
            _here.noted.append(lambda: _emit(logger, record, each))
        elif _here.sink is not None:
            _here.is_logging = True  # what the sink itself would log goes back to the sink
            try:
                _here.sink(lambda: _emit(logger, record, each))
            finally:
                _here.is_logging = False
        else:
            _emit(logger, record, each)


def _emit(logger: logging.Logger, record: logging.LogRecord, each: bool) -> None:
    """Have the handlers see a line, and nobody else see what they raise."""
    _here.is_logging = True
    try:
        if each or record.levelno < logging.WARNING or _is_new(record):
            logger.handle(record)
    except Exception:  # noqa: BLE001  # whatever it is, it is not the caller's
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"mppool: a log handler raised; the line was: {record.msg}\n")
            traceback.print_exc()
    finally:
        _here.is_logging = False

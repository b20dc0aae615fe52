"""Secret: a password, a key or a connection string that is fetched when it is needed, and may change.

log_in() --> ask() --> Secret --> fetch()      once for all threads that want it at the same time
   |
   | the login is refused
   v
newer_than(when the login began): ask()        a Secret that was fetched before then is fetched again
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from time import monotonic
from typing import Any, Protocol, TypeVar

from mppool.errors import ConfigurationError
from mppool.recipe import Opening, name_of, refuse_nameless

A = TypeVar("A", bound="Asked")
T = TypeVar("T")

_not_before: ContextVar[float] = ContextVar("mppool_secret_not_before", default=0.0)
"""A secret that was fetched before this instant (monotonic) is fetched again."""


_KEY = os.urandom(16)

_LEAST_S = 0.1


@contextmanager
def newer_than(instant: float) -> Iterator[None]:
    """Within the block every Secret gives a text that was fetched after this instant (monotonic)."""
    before = _not_before.set(instant)
    try:
        yield
    finally:
        _not_before.reset(before)


class Asked(Protocol):
    """What an opening logs in with."""

    @property
    def digest(self) -> str:
        """Tells logins apart within this process; "" where no callable was asked."""


def log_in(
    opening: Opening,
    ask: Callable[[], A],
    attempt: Callable[[A], T | Exception],
    refuses: Callable[[Exception], bool],
) -> T | Exception:
    """Log in; where that is refused with what callables have said, ask them once more.

    ask: asks all callables.
    attempt: logs in once; returns the error, so that it can be raised where no frame knows a secret.
    refuses: whether an error says that user or password was not accepted.
    """
    asked = ask()
    began = monotonic()
    outcome = attempt(asked)
    if asked.digest and isinstance(outcome, Exception) and refuses(outcome):
        opening.login_at = monotonic()
        with newer_than(began):
            newer = ask()
        if newer.digest != asked.digest:
            if opening.timeout is not None:
                opening.timeout = max(_LEAST_S, opening.timeout - (monotonic() - began))
            asked, outcome = newer, attempt(newer)
    opening.login = asked.digest
    return outcome


def digest_of(login: str) -> str:
    """Tells logins apart within this process, without saying them."""
    return blake2b(login.encode("utf-8", "surrogatepass"), key=_KEY, digest_size=8).hexdigest()


class _Fetch:
    """A fetch that is going on. The threads that want its result wait for `done`."""

    __slots__ = ("done", "thread")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.thread = threading.get_ident()


class Secret:
    """A secret text that is fetched when a connection is opened, and may change while the application runs.

    fetch: a callable without arguments that returns the text. It is called by one thread at a time; the other
        threads wait for its result. Each process fetches for itself.
    ttl: seconds that a text is used; None: until a login with it is refused.

    Give it to a recipe in place of a password or of a whole connection string, or call it in a callable
    that makes one. If the database refuses a login, the secret is fetched once more before the attempt counts
    as failed. If `fetch` raises, the opening fails. A Secret pickles as its `fetch`, never with its text, and its
    `repr` does not show it.

    Raises ConfigurationError for arguments that cannot be used, and when it is called, if `fetch` did not return text.
    """

    def __init__(self, fetch: Callable[[], str], ttl: float | None = None) -> None:
        if not callable(fetch):
            raise ConfigurationError(
                f"fetch is a {type(fetch).__name__}; give a callable without arguments that returns the secret"
            )
        if ttl is not None and (
            isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0
        ):
            raise ConfigurationError(f"ttl is {ttl!r:.40}; allowed are seconds above 0, or None")
        self._fetch = fetch
        self._ttl = ttl
        self._known: tuple[str, float] | None = None  # the text, and when its fetch began
        self._renew()

    def _renew(self) -> None:
        # Guards `_known` and `_going_on`. Nothing else happens while it is held: `fetch` is called without it.
        self._lock = threading.Lock()
        self._going_on: _Fetch | None = None
        self._pid = os.getpid()

    def __call__(self) -> str:
        """The text: the one that is known, or a new one. Raises what `fetch` raises."""
        if self._pid != os.getpid():
            self._renew()  # the lock, and the fetch that goes on, belong to the parent's threads
        not_before = _not_before.get()
        while True:
            with self._lock:
                if self._known is not None and self._is_good(*self._known, not_before):
                    return self._known[0]
                other = self._going_on
                if other is None:
                    mine = self._going_on = _Fetch()
                    break
            if other.thread == threading.get_ident():
                raise ConfigurationError(
                    "the fetch of a Secret asks for the very secret that it fetches"
                )
            other.done.wait()
        return self._fetched(mine)

    def _is_good(self, text: str, fetched_at: float, not_before: float) -> bool:
        """Caller holds the lock."""
        if fetched_at < not_before:
            return False
        return self._ttl is None or monotonic() < fetched_at + self._ttl

    def _fetched(self, mine: _Fetch) -> str:
        began = monotonic()
        try:
            text = checked_text(self._fetch(), "a Secret")
            with self._lock:
                self._known = (text, began)
        finally:
            with self._lock:
                self._going_on = None
            mine.done.set()
        return text

    @property
    def name(self) -> str:
        """The name of the function that fetches: what is known of a secret without fetching it."""
        return name_of(self._fetch)

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        refuse_nameless({"fetch": self._fetch})
        return (Secret, (self._fetch, self._ttl))


def answers_of(sources: Mapping[str, Any]) -> dict[str, str]:
    """The texts, and what callables return, by name. Raises what a callable raises, and ConfigurationError."""
    return {name: checked_text(value_of(one), name) for name, one in sources.items()}


def value_of(source: Any) -> Any:
    """What a callable returns, asked now; or the value itself."""
    return source() if callable(source) else source


def source_name(source: Any) -> str:
    """The name of a callable: what is known of it without asking it. Equal in all processes."""
    return source.name if isinstance(source, Secret) else name_of(source)


def checked_text(text: object, what: str) -> str:
    """The text that a callable returned. Raises ConfigurationError, which never shows it, for anything else."""
    if not isinstance(text, str) or not text:
        kind = "an empty text" if isinstance(text, str) else f"a {type(text).__name__}"
        raise ConfigurationError(f"the callable for {what} returned {kind}; it must return a text")
    return text

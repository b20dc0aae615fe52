"""Stands for an object in a host: methods, attributes, and what they return.

Plain values travel by value. Any other object stays in the host, and a proxy for it is returned. All of them belong to the
lease, and end with it.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.errors import ForkedLease, LeaseReleased, PoolError, StaleLease
from mppool.hosting import frames
from mppool.hosting.answers import raise_error
from mppool.hosting.lost import lost
from mppool.hosting.streams import HostGone
from mppool.hosting.values import PLAIN, FromHost, ToHost, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.hosting.streams import Stream

_PLAIN, _EXECUTE, _ERROR = PLAIN, frames.EXECUTE, frames.ERROR
_TEXT = frozenset({str})
_COMMITS = frozenset({"commit", "__exit__"})


def _are_plain(parameters: Any) -> bool:
    """A dictionary by name, of values that msgpack carries as they are."""
    return (
        type(parameters) is dict
        and _TEXT.issuperset(map(type, parameters))
        and _PLAIN.issuperset(map(type, parameters.values()))
    )


class Facts:
    """What is known of a type in the host."""

    __slots__ = ("driver", "methods", "name", "special", "word")

    def __init__(self, told: tuple[str, tuple[str, ...], tuple[str, ...], str, str]) -> None:
        self.name = told[0]
        self.methods = frozenset(told[1])
        self.special = told[2]
        self.word = told[3]
        self.driver = told[4]


class Hold:
    """One lease, as the worker holds it: a stream, the number of the lease, and the proxies that belong to it.

    freed: handles of proxies that are gone; finalizers append to it, and the next request takes them along.
    may_stay: the next lease of its stream may be kept for this process.
    """

    def __init__(
        self,
        stream: Stream,
        number: int,
        pool: str,
        *,
        may_pickle: bool,
        commits: bool,
        connection_of: Callable[[Hold, int, Facts], Any],
    ) -> None:
        """commits: whether each statement does. connection_of: makes the proxy of a connection or a cursor."""
        self.stream = stream
        self.number = number
        self.pool = pool
        self.freed: deque[int] = deque()
        self.why_over = ""
        self.is_over = False
        self._proxies: dict[int, weakref.ref[Any]] = {}
        self._next = 1
        self._to_host = ToHost(pool, self._handle_of, may_pickle=may_pickle)
        self._made = connection_of
        self.commits = commits
        self.is_database = False
        self.lease: Any = None
        self.may_stay = False

    # --- requests -----------------------------------------------------------------------------------------------

    def call(self, handle: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method."""
        _, body = self.answered(name, frames.CALL, [handle, name], args, kwargs)
        return self.loaded(body)

    def get(self, handle: int, name: str) -> tuple[bool, Any]:
        """Whether an attribute can be called, or its value."""
        kind, body = self.answered(f"reading {name}", frames.GET, [handle, name])
        return (True, None) if kind == frames.IS_CALLABLE else (False, self.loaded(body))

    def set(self, handle: int, name: str, value: Any) -> None:
        """Set an attribute."""
        packed = self._to_host.packed(value)
        self.answered(f"setting {name}", frames.SET, [handle, name, packed])

    def answered(
        self,
        doing: str,
        op: int,
        head: list[Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[int, Any]:
        """One request and its answer. Raises what the host raises, and StaleLease where it is gone."""
        self.check()
        try:
            kind, body = self.stream.ask(self._request(op, head, args, kwargs))
        except HostGone:
            self._host_is_gone(doing)
        if kind == frames.ERROR:
            self._raise(body)
        return kind, body

    def answered_in_parts(
        self, doing: str, op: int, head: list[Any], take: Callable[[Any], None]
    ) -> tuple[int, Any]:
        """The same for an answer in several parts."""
        self.check()
        try:
            kind, body = self.stream.ask_for_all(self._request(op, head, None, None), take)
        except HostGone:
            self._host_is_gone(doing)
        if kind == frames.ERROR:
            self._raise(body)
        return kind, body

    def execute(self, handle: int, of_connection: bool, args: tuple[Any, ...]) -> tuple[int, Any]:
        """What `answered` does, for a statement: at once where it is a text, with a tuple or a dictionary of plain values."""
        # This is in the way of each statement, so tuples are looked at here.
        parameters, count = None, len(args)
        is_plain = 0 < count <= 2 and type(args[0]) is str
        if is_plain and count == 2:
            parameters = args[1]
            if type(parameters) is tuple:
                is_plain = _PLAIN.issuperset(map(type, parameters))
            else:
                is_plain = _are_plain(parameters)
        if not is_plain or self.is_over:
            head = [handle, of_connection, "execute"]
            return self.answered("execute", frames.RUN, head, args, {})
        stream = self.stream
        if not stream.mark[0]:
            self._refuse()
        freed = self._freed() if self.freed else ()
        try:
            body = encode(
                (self.number, _EXECUTE, freed, handle, of_connection, args[0], parameters)
            )
        except (OverflowError, UnicodeEncodeError):
            self.freed.extend(freed)
            head = [handle, of_connection, "execute"]
            return self.answered("execute", frames.RUN, head, args, {})
        try:
            kind, answer = stream.ask(body)
        except HostGone:
            self._host_is_gone("execute")
        if kind == _ERROR:
            self._raise(answer)
        return kind, answer

    def _request(
        self, op: int, head: list[Any], args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None
    ) -> bytes:
        whole = [self.number, op, self._freed() if self.freed else [], *head]
        return encode(whole) if args is None else self._to_host.encode(whole, args, kwargs or {})

    def _freed(self) -> list[int]:
        found: list[int] = []
        while self.freed:
            found.append(self.freed.popleft())
            self._proxies.pop(found[-1], None)
        return found

    @property
    def is_lost(self) -> bool:
        """Whether the host is gone: nothing is left to be closed there."""
        return self.is_over and bool(self.why_over)

    def check(self) -> None:
        """Raises where this lease cannot be used any more."""
        if self.is_over or not self.stream.mark[0]:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if not self.stream.mark[0]:
            raise ForkedLease(
                f"pool {self.pool!r}: this lease was taken by the parent of this process; check out in this process "
                "instead"
            )
        if self.why_over:
            raise self._lost(self.why_over)
        raise LeaseReleased(
            f"pool {self.pool!r}: this lease was given back already; check out again to go on"
        )

    def _host_is_gone(self, doing: str) -> NoReturn:
        """The stream has ended in the middle of a call, or before it."""
        is_rolled_back = self.is_database and not self.commits and doing not in _COMMITS
        outcome = (
            "what had not been committed is rolled back"
            if is_rolled_back
            else "it may or may not have been done (the outcome is unknown): look before you do it again"
        )
        self.why_over = (
            f"pool {self.pool!r}: the host (pid {self.stream.host_pid}) that held the resource is gone, or the stream "
            f"to it was closed because a call was interrupted; it was lost at {doing}; {outcome}; check out again"
        )
        self.is_over = True
        raise self._lost(self.why_over)

    def _raise(self, body: Any) -> NoReturn:
        """What the host has raised."""
        try:
            raise_error(body, self.pool)
        except StaleLease as error:
            text = str(error)
        raise self._lost(text)

    def _lost(self, text: str) -> StaleLease:
        """The error of a connection that is lost is its driver's too."""
        introduced = self.stream.introduced
        facts = None if introduced is None else self.stream.facts.get(introduced[1])
        return lost("" if facts is None else facts.driver, text)

    # --- values and proxies -------------------------------------------------------------------------------------

    def loaded(self, body: Any) -> Any:
        """What an answer says."""
        return FromHost(body, self.stands_for).load()

    def stands_for(self, pid: Any) -> Any:
        """The proxy of what was kept in the host."""
        handle, told = pid
        facts = self.told(told)
        reference = self._proxies.get(handle)
        found = None if reference is None else reference()
        if found is None:
            self.is_database = self.is_database or facts.word != "object"
            make = made_for if facts.word == "object" else self._made
            found = make(self, handle, facts)
            self._proxies[handle] = weakref.ref(found)
        return found

    def told(self, told: Any) -> Facts:
        """What the host says of a type, now or earlier."""
        if isinstance(told, str):
            found: Facts = self.stream.facts[told]
            return found
        facts = self.stream.facts[told[0]] = Facts(told)
        return facts

    def new_handle(self) -> int:
        """For a cursor that the host makes when it is used."""
        handle, self._next = self._next, self._next + 2
        return handle

    def enter(self, handle: int, proxy: Any) -> None:
        """The proxy for a handle of ours."""
        self._proxies[handle] = weakref.ref(proxy)

    def _handle_of(self, value: Any) -> int | None:
        if not isinstance(value, Hosted):
            return None
        if object.__getattribute__(value, "_hold") is not self:
            raise PoolError(
                f"pool {self.pool!r}: this belongs to another lease; what is in a host can only be used with what came "
                "from the same lease"
            )
        handle: int = object.__getattribute__(value, "_handle")
        return handle


_OWN = frozenset({"_facts", "_handle", "_hold"})


class Hosted:
    """What stands for something in a host."""

    __slots__ = ("__weakref__", "_facts", "_handle", "_hold")

    _hold: Hold
    _handle: int
    _facts: Facts

    def __init__(self, hold: Hold, handle: int, facts: Facts) -> None:
        object.__setattr__(self, "_hold", hold)
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_facts", facts)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)  # one that was never finished
        if name in self._facts.methods:
            return functools.partial(self._called, name)
        if name.startswith("__"):
            raise AttributeError(f"{self._facts.name} in a host: {name} is not offered")
        is_callable, value = self._hold.get(self._handle, name)
        return functools.partial(self._called, name) if is_callable else value

    def __setattr__(self, name: str, value: Any) -> None:
        self._hold.set(self._handle, name, value)

    def _called(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._hold.call(self._handle, name, args, kwargs)

    def __del__(self) -> None:
        try:
            if self._handle:
                self._hold.freed.append(self._handle)
        except AttributeError:
            pass  # it was never finished

    def __reduce__(self) -> NoReturn:
        raise PoolError(
            f"pool {self._hold.pool!r}: what stands for a resource in a host cannot be pickled; send the Pool instead "
            "and check out there"
        )

    def __repr__(self) -> str:
        return f"<{self._facts.name} in a host, pool {self._hold.pool!r}>"


_classes: dict[tuple[str, tuple[str, ...]], type[Hosted]] = {}


def made_for(hold: Hold, handle: int, facts: Facts) -> Hosted:
    """A proxy with the special methods that its object has."""
    key = (facts.name, facts.special)
    kind = _classes.get(key)
    if kind is None:
        members: dict[str, Any] = {name: _special(name) for name in facts.special}
        members["__slots__"] = ()
        kind = _classes.setdefault(key, type("HostedObject", (Hosted,), members))
    return kind(hold, handle, facts)


def _special(name: str) -> Callable[..., Any]:
    if name == "__exit__":

        def leave(self: Hosted, kind: Any, error: Any, trace: Any) -> Any:
            raised = None if kind is None else True
            return self._hold.call(self._handle, "__exit__", (raised, None, None), {})

        return leave

    def method(self: Hosted, /, *args: Any, **kwargs: Any) -> Any:
        return self._hold.call(self._handle, name, args, kwargs)

    method.__name__ = name
    return method

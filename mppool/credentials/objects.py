"""Credential objects of this process: telling them apart, and using them after a fork."""

from __future__ import annotations

import copy
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from mppool.credentials.identity import azure_class_of, is_interactive
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.process.fork import call_in_children

T = TypeVar("T")

log = Log("mppool")


class _Known:
    """An object that was seen. pid: of the process that saw it first, and may have opened connections with it."""

    __slots__ = ("pid", "reference", "serial")

    def __init__(self, reference: weakref.ref[Any], serial: int) -> None:
        self.reference = reference
        self.serial = serial
        self.pid = os.getpid()


_serials = itertools.count(1)
# By id, with a weak reference that must still lead to the very object: an id alone is recycled. Credentials
# need be neither hashable nor comparable.
_known: dict[int, _Known] = {}
# Copies that a forked child has made of what it inherited, by the serial of the original.
_copies: dict[int, Any] = {}
# What belongs to an object that was seen, as long as that lives, by its serial.
_belongings: dict[int, Any] = {}
_lock = threading.Lock()
"""Guards that no object gets two serials, or two copies. Copying happens while it is held."""


def _renew() -> None:
    """In a forked child: the thread that held the lock does not exist here, and the copies are the parent's."""
    global _lock, _copies
    _lock = threading.Lock()
    _copies = {}


call_in_children(_renew)


def serial_of(credential: object) -> int:
    """A number for this very object, which no other object of this process ever gets.

    Raises ConfigurationError for an object that cannot be referred to weakly.
    """
    return _seen(credential).serial


def belongings_of(credential: object, make: Callable[[], T]) -> T:
    """What belongs to this very object, as long as it lives: what `make()` gave first. It must not refer to it.

    Raises ConfigurationError for an object that cannot be referred to weakly.
    """
    serial = serial_of(credential)
    made = _belongings.get(serial)
    if made is None:
        made = _belongings.setdefault(serial, make())
    return made  # type: ignore[no-any-return]


def fit_for_use(credential: Any) -> Any:
    """The credential, or in a forked child a copy that shares no connection with its parent.

    A connection that parent and child both write on gives one the other's answer: a token of somebody else.
    """
    known = _seen(credential)
    if known.pid == os.getpid() or not azure_class_of(credential):
        return credential  # classes that are not azure-identity's look after themselves
    with _lock:
        made = _copies.get(known.serial)
        if made is None:
            made = _copies[known.serial] = copy_of(credential)
    _seen(made)  # from now on it is this process's own, and inherited by others
    return made


def _seen(credential: object) -> _Known:
    known = _known.get(id(credential))
    if known is not None and known.reference() is credential:
        return known
    with _lock:
        known = _known.get(id(credential))
        if known is not None and known.reference() is credential:
            return known
        address, serial = id(credential), next(_serials)

        def forget(gone: weakref.ref[Any]) -> None:
            # Runs at any instruction, in any thread: a look and two atomic steps, and no lock.
            entry = _known.get(address)
            if entry is not None and entry.reference is gone:
                _known.pop(address, None)
            _copies.pop(serial, None)
            _belongings.pop(serial, None)

        try:
            reference = weakref.ref(credential, forget)
        except TypeError:
            raise ConfigurationError(
                f"a credential of type {type(credential).__name__} cannot be told from others that come "
                "after it (it has __slots__ without __weakref__); name it with identity="
            ) from None
        _known[address] = known = _Known(reference, serial)
        return known


def copy_of(credential: Any) -> Any:
    """A copy without its connections, or, with a warning, the credential itself where there can be none."""
    try:
        made = copy.deepcopy(credential, {id(old): new for old, new in _unopened(credential)})
    except Exception as error:  # noqa: BLE001  # whatever a callback or a transport of the application raises
        log.warning(
            "a %s that was made before the fork, or for another event loop, cannot be copied (%s), so it is used "
            "with the connections that it has; make one after the fork, and in each loop",
            azure_class_of(credential),
            type(error).__name__,
        )
        return credential
    if is_interactive(credential):
        # A person who has signed in need not do it again: these are tokens, not connections.
        made._cache, made._cae_cache = credential._cache, credential._cae_cache
    return made


def _unopened(credential: Any) -> list[tuple[Any, Any]]:
    """The transports in a credential, each with one like it that was never opened or closed."""
    found: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    left: list[Any] = [credential]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (list, tuple)):
            left.extend(one)
        elif isinstance(one, dict):
            left.extend(one.values())
        elif type(one).__module__.split(".")[0] == "azure":
            inner = dict(getattr(one, "__dict__", {}))
            if "session" in inner and inner.get("_session_owner"):
                found.append((one, _closed_copy(one)))
            else:
                left.extend(inner.values())
    return found


def _closed_copy(transport: Any) -> Any:
    made = copy.copy(transport)
    made.session = None
    if hasattr(made, "_has_been_opened"):
        made._has_been_opened = False
    return made

"""What a forked child must neither use nor close.

The core makes its own table of resources immortal in a child (decision 0004), but an object that is lent
by `get` is not in that table, only a weak reference to it is. And CPython finalizes what other threads
keep in their `threading.local` before any hook runs in the child (hazard 5). So everything is held fast
before the fork, and in the child for ever.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from mppool.process.fork import call_around_forks, call_in_children, make_immortal


class Holder(Protocol):
    """Something that knows objects which belong to this process alone."""

    def belongings(self) -> list[Any]:
        """The objects, strongly referred to. Called before a fork."""

    def renew(self) -> None:
        """Start with nothing. Called in the child: no I/O, no logging, no lock of the parent."""


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_held_fast: list[Any] = []


def start_anew_in_children(holder: Holder) -> None:
    """From now on the holder's belongings are safe from forked children, while it lives."""
    _holders.add(holder)


def _before() -> None:
    _held_fast.append([holder.belongings() for holder in list(_holders)])


def _after_in_parent() -> None:
    _held_fast.clear()


def _after_in_child() -> None:
    make_immortal(tuple(_held_fast))
    _held_fast.clear()
    for holder in list(_holders):
        holder.renew()


call_around_forks(_before, _after_in_parent)
call_in_children(_after_in_child)

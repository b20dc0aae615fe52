"""Finds resources that nobody holds any more because a thread was interrupted with them in its hands.

A KeyboardInterrupt, a worker's SystemExit or a gevent Timeout can be raised between any two instructions:
also after a resource was popped from its shelf, and before any variable or lease refers to it. No
`finally` can give back what was never stored. But the table of the inventory refers to every resource
from before its opening until after its closing (rule 5). So a resource to which nothing but the table
refers is in nobody's hands and on no shelf: it is lost, and it is closed. Reference counts tell exactly
that, because a frame's value stack holds references too: what is in the hands of a thread, between whatever
two instructions, is never taken for lost. The other way round a left-over reference (a traceback that
somebody keeps) only delays the cure; therefore our own frames are cleared from the traceback, and the
audit is repeated for a while.

On free-threaded builds reference counts are spread over threads and say nothing; there nothing is done.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from mppool.logs import Log, logged_afterwards
from mppool.worker.context import Context
from mppool.worker.ending import close_soon
from mppool.worker.inventory import Inventory, PoolEntry

log = Log("mppool")

COUNTS_ARE_EXACT = "t" not in sys.abiflags  # sysconfig knows too, and costs a megabyte

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 1.0
"""The audit is repeated at doubling intervals between these, until the next would be longer."""


class _Probe:
    grant: Any = None
    resource: Any = None


def _references(table: dict[Any, Any], number: Any) -> int:
    """References to an entry of the table, as seen from here."""
    return sys.getrefcount(table[number])


def _grant_references(entry: Any) -> int:
    return sys.getrefcount(entry.grant)


def _resource_references(holder: Any) -> int:
    return sys.getrefcount(holder.resource)


def _measured() -> tuple[int, int, int]:
    """What the functions above say of an entry, a grant and a resource to which nothing else refers."""
    probe = _Probe()
    probe.grant, probe.resource = [1], [2]
    table = {1: probe}
    of_grant, of_resource = _grant_references(probe), _resource_references(probe)
    del probe
    return _references(table, 1), of_grant, of_resource


_ENTRY_ALONE, _GRANT_ALONE, _RESOURCE_ALONE = _measured()


class Audit:
    """When to look, and what is found.

    `_wanted` is set by interrupted threads. Everything else belongs to the background thread.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wanted = False
        self._was_wanted = False
        self._pause = 0.0
        self._at = 0.0

    def want(self) -> None:
        """Something may be lost: look soon."""
        self._wanted = self._was_wanted = True
        self._context.housekeeper.expects(monotonic())

    def want_again(self) -> None:
        """Somebody waits: look again, if there was ever a reason to."""
        if self._was_wanted:
            self.want()

    def run(self, now: float) -> None:
        """Look, if it is time. Called by the background thread."""
        if self._wanted:
            self._wanted, self._pause, self._at = False, FIRST_PAUSE_S, now
        if not self._pause or not COUNTS_ARE_EXACT:
            return
        if now >= self._at:
            close_lost(self._context, self._context.inventory)
            self._at, self._pause = now + self._pause, self._pause * 2
            if self._pause > LONGEST_PAUSE_S:
                self._pause = 0.0
                return
        self._context.housekeeper.expects(self._at)


def close_lost(context: Context, inventory: Inventory) -> int:
    """Close, or decline, what nobody holds; how many there were."""
    lost = 0
    for number in list(inventory.table):
        with inventory.lock:
            if number not in inventory.table or not _is_lost(inventory, number):
                continue
            entry = inventory.table[number]
            inventory.reopen_lost(entry)
        lost += 1
        entry.local.count("recovered")
        log.warning(
            "pool %r: a resource was lost by a thread that was interrupted; it is closed",
            entry.local.name,
        )
        if entry.state == "opening":
            context.chores.add(lambda entry=entry: give_up_opening(entry))  # type: ignore[misc]
        else:
            close_soon(entry, "discarded")
    return lost


def _is_lost(inventory: Inventory, number: Any) -> bool:
    """Caller holds the inventory's lock."""
    if _references(inventory.table, number) != _ENTRY_ALONE:
        return False
    entry = inventory.table[number]
    if entry.state == "detached" and _is_used(entry):
        return False
    # A grant that was not used yet is in its owner's hands, and the entry only in the table.
    return entry.grant is None or _grant_references(entry) == _GRANT_ALONE


def _is_used(entry: PoolEntry) -> bool:
    """Whether somebody else refers to what was detached. If nobody does, nobody has got it, or can close it."""
    holder = entry.resource if entry.local.recipe.belongs_to_loop else entry
    return _resource_references(holder) != _RESOURCE_ALONE


@logged_afterwards
def give_up_opening(entry: PoolEntry, error: str | None = None, *, counted: bool = False) -> None:
    """An opening that is not completed: close what was opened, and give the grant back."""
    inventory, local = entry.inventory, entry.local
    if inventory.inherited:
        return
    if entry.opened:
        resource = entry.opened.pop()
        try:
            local.hooks.close(resource, "closing a resource that was not ready yet raised")
        finally:
            if not inventory.inherited:
                _tell_given_up(entry, error, counted)
        return
    _tell_given_up(entry, error, counted)


def _tell_given_up(entry: PoolEntry, error: str | None, counted: bool) -> None:
    entry.inventory.opening_ended(entry.number, error, counted=counted)
    entry.local.member.link.flush()
    entry.local.idle.line.poke(entry.key)

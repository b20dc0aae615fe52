"""Bugs of what a process does with its resources and its waiting threads."""

from __future__ import annotations

from tests.planted.bugs import Bug

_INVENTORY = ("tests/worker/test_inventory.py",)
_IDLE = ("tests/worker/test_idle.py",)
_LINE = ("tests/worker/test_line.py",)
_ASKING = ("tests/processes/test_asking.py",)

WORKER_BUGS = [
    # --- asking ------------------------------------------------------------------------------------------
    Bug(
        "refusals-uncounted",
        "worker/report.py",
        '        local.count("timeouts", local.refusals.take())\n',
        "",
        "the last refusals of a process are missing in the statistics",
        _ASKING,
    ),
    Bug(
        "refusals-counted-again",
        "worker/refusals.py",
        "            while True:\n                self.uncounted.pop()\n                taken += 1\n",
        "            return len(self.uncounted)\n",
        "refusals are counted again with each look at the statistics",
        _ASKING,
    ),
    Bug(
        "refusal-in-its-own-traceback",
        "worker/pool.py",
        "        raise CheckoutTimeout(got)  # not",
        "        why = CheckoutTimeout(got)\n        raise why  # not",
        "each refusal is garbage that only the collector finds",
        _ASKING,
    ),
    Bug(
        "frame-within-a-frame",
        "wire/framing.py",
        "            and not self._buffer\n",
        "",
        "a piece of a message that looks like a whole one is taken for it",
        ("tests/wire/test_framing.py",),
    ),
    Bug(
        "looks-for-one-peer-twice",
        "server/loop.py",
        "        self._is_crowded = len(ready) > 1 or ",
        "        self._is_crowded = bool(ready) or ",
        "each word of a process that is alone costs the server a look that finds nobody",
        ("tests/server/test_deadlines.py",),
    ),
    Bug(
        "reckons-for-each-of-a-crowd",
        "server/loop.py",
        "        self._is_crowded = len(ready) > 1 or ",
        "        self._is_crowded = ",
        "the more processes speak, the more often deadlines are reckoned",
        ("tests/server/test_deadlines.py",),
    ),
    # --- the inventory -----------------------------------------------------------------------------------
    Bug(
        "table-before-word",
        "worker/inventory.py",
        "        self.outbox.append(event)\n        self.side.pop(entry.number, None)\n        del self.table[entry.number]\n",
        "        self.side.pop(entry.number, None)\n        del self.table[entry.number]\n        self.outbox.append(event)\n",
        "what an interrupted thread closed is neither told nor found",
        _INVENTORY,
    ),
    Bug(
        "late-grant-registered",
        "worker/inventory.py",
        "if self.session != session or grant.number in self.voided:",
        "if self.session != session:",
        "a grant is used that the books were told is not ours: over the cap",
        _INVENTORY,
    ),
    Bug(
        "opened-beside-what-is-closed-for-it",
        "worker/inventory.py",
        "            if grant.instead_of in self.table:\n",
        "            if False:\n",
        "two resources are open in one slot while the first is being closed",
        _INVENTORY,
    ),
    Bug(
        "successor-disowned",
        "worker/inventory.py",
        " or any(e.number == number for e in self.successors.values()):",
        ":",
        "the books free a slot whose resource is being closed, and in which another one will be opened",
        _INVENTORY,
    ),
    Bug(
        "successor-outlives-its-session",
        "worker/inventory.py",
        "            successor.local.gone(successor)\n        self.successors.clear()\n",
        "            successor.local.gone(successor)\n",
        "something is opened that no server has granted",
        _INVENTORY,
    ),
    Bug(
        "successor-of-a-hung-close",
        "worker/inventory.py",
        "                    self._leaves(entry, Declined(successor.number))\n",
        '                    self._leaves(entry, Closed(entry.number, "unhealthy"))\n',
        "the slot of a close that hangs is lost, where another resource was to be opened in it",
        _INVENTORY,
    ),
    # --- idle resources and waiting threads --------------------------------------------------------------
    Bug(
        "ends-on-the-way-to-the-shelf",
        "worker/idle.py",
        "if entry.retire_at <= monotonic():",
        "if entry.retire_at == AT_ONCE:",
        "what reaches its end while it is reset lies idle for ever",
        _IDLE,
    ),
    Bug(
        "no-look-at-waiters",
        "worker/idle.py",
        "        if self.attention:\n            self._attend(entry)\n",
        "",
        "a thread sleeps beside a shelf with what it waits for",
        _IDLE,
    ),
    Bug(
        "gives-to-a-caller",
        "process/waiter.py",
        "                if waiter.is_ready:\n                    return waiter\n",
        "                if waiter.is_open:\n                    return waiter\n",
        "a thread that waits for a stopped server holds what others could use",
        _LINE,
    ),
    Bug(
        "attention-ends-early",
        "worker/idle.py",
        "self.attention = self.contended or bool(self.line.waiters)",
        "self.attention = self.contended",
        "releases do not look for waiting threads",
        _IDLE,
    ),
    Bug(
        "borrowed-at-the-end",
        "worker/shelves.py",
        "    entry.shelf.insert(bisect_left(since, entry.released_at), entry)",
        "    pass",
        "what a background check borrowed is lost",
        _IDLE,
    ),
    Bug(
        "ticket-never-ends",
        "worker/line.py",
        "        key = self._asked.get(ticket)\n",
        "        key = None\n",
        "answered tickets count as on their way for ever",
        _LINE,
    ),
    Bug(
        "poke-the-insistent",
        "worker/line.py",
        "        if waiter.insists or not waiter.is_open or self._is_asked_for(demand, waiter):",
        "        if not waiter.is_open or self._is_asked_for(demand, waiter):",
        "a thread is woken that cannot ask, and the one that could sleeps on",
        _LINE,
    ),
    Bug(
        "asks-in-a-silence",
        "worker/line.py",
        "        if demand.can_go_on and now < self._context.silence.until:",
        "        if False:",
        "all threads wait for a stopped server again and again",
        _LINE,
    ),
]

"""Bugs of leases that stay with their worker in advance: decision 0086."""

from __future__ import annotations

from tests.planted.bugs import Bug

_KEPT = ("tests/hosting/test_kept_purely.py",)

HOSTING_BUGS = [
    # --- the host's end ----------------------------------------------------------------------------------
    Bug(
        "kept-without-a-reset",
        "worker/renewing.py",
        "if local.hooks.reset is not None and not local.was_reset(entry):",
        "if False:",
        "the next use sees what the last one has left",
        _KEPT,
    ),
    Bug(
        "kept-with-its-handles",
        "hosting/lending.py",
        "        use.end()\n        self._pins.end()\n        if self._spoils:\n",
        "        self._pins.end()\n        if self._spoils:\n",
        "what a lease was given outlives it",
        _KEPT,
    ),
    Bug(
        "kept-number-stays",
        "hosting/lending.py",
        '        self.number += 1\n        self._is_untouched, self._who = True, ("", "")\n',
        '        self._is_untouched, self._who = True, ("", "")\n',
        "a late request of the last lease is taken for one of the next",
        _KEPT,
    ),
    Bug(
        "kept-although-wanted",
        "hosting/lending.py",
        "is_wanted = self._kept.flag.is_set() or self._pool._local.idle.attention",
        "is_wanted = False",
        "a worker keeps what others wait for",
        _KEPT,
    ),
    Bug(
        "kept-and-given-back",
        "hosting/lending.py",
        "if is_wanted and self.right.take():",
        "if is_wanted:",
        "what a worker has checked out again is lent to another one",
        _KEPT,
    ),
    Bug(
        "called-in-from-its-user",
        "hosting/lending.py",
        "        is_ours = self.right.take()\n        self.is_used()\n",
        "        is_ours = self.right.take() or True\n        self.is_used()\n",
        "one resource is lent to two",
        _KEPT,
    ),
    Bug(
        "called-in-and-left",
        "hosting/lending.py",
        "        is_ours = self.right.take()\n        self.is_used()\n",
        "        is_ours = True\n        self.is_used()\n",
        "the worker has a lease that has ended",
        _KEPT,
    ),
    Bug(
        "asked-for-by-anybody",
        "hosting/lending.py",
        "if identity is not None or self._kept.flag.is_set():",
        "if self._kept.flag.is_set():",
        "what was opened for one identity is handed to another",
        _KEPT,
    ),
    Bug(
        "asked-for-before-others",
        "hosting/lending.py",
        "if identity is not None or self._kept.flag.is_set():",
        "if identity is not None:",
        "a process that uses the pool all the time starves the others",
        _KEPT,
    ),
    Bug(
        "spoiled-goes-on",
        "hosting/lending.py",
        "        if self._spoils:\n            self.end(frames.DISCARDED)\n            return False\n",
        "",
        "a cancelled session, or one with traces, is lent again",
        _KEPT,
    ),
    Bug(
        "kept-in-vain",
        "hosting/lending.py",
        "        elif not self._goes_on() and not self.right.take():\n            self._give_another()\n",
        "        else:\n            self._goes_on()\n",
        "a checkout returns a lease of nothing",
        _KEPT,
    ),
    Bug(
        "ended-before-and-in-vain",
        "hosting/lending.py",
        "        if is_expected and self.right is not None and not self.right.take():\n            self._give_another()\n",
        "        pass\n",
        "a lease that has ended before its release leaves its worker with one of nothing",
        _KEPT,
    ),
    Bug(
        "in-advance-is-a-use",
        "worker/renewing.py",
        "    entry.uses -= 1\n",
        "",
        "resources wear out of uses that nobody had",
        _KEPT,
    ),
    Bug(
        "called-in-before-the-flag",
        "hosting/keeping.py",
        "            self._call_in_all()\n            yield\n        finally:\n",
        "            yield\n        finally:\n",
        "who waits does not get what others keep and do not use",
        _KEPT,
    ),
    Bug(
        "flag-for-one-reason",
        "hosting/keeping.py",
        "self.flag.set(self._waiting > 0 or self._contended)",
        "self.flag.set(self._waiting > 0)",
        "workers keep what other processes of the manager wait for",
        _KEPT,
    ),
    Bug(
        "kept-in-lanes",
        "hosting/keeping.py",
        "        and options.lanes is None\n",
        "",
        "the books do not see whose turn it is",
        _KEPT,
    ),
    Bug(
        "kept-and-never-checked",
        "hosting/keeping.py",
        "        and is_trusted\n",
        "",
        "a pool that checks at each checkout does not",
        _KEPT,
    ),
    # --- the worker's end --------------------------------------------------------------------------------
    Bug(
        "right-after-the-word",
        "hosting/streams.py",
        "        if keeps and right is not None:\n"
        "            right.give()  # first: the host that reads what is told next may want it back\n"
        "        self.tell(lease, frames.RELEASE, how, keeps)\n",
        "        self.tell(lease, frames.RELEASE, how, keeps)\n"
        "        if keeps and right is not None:\n"
        "            right.give()\n",
        "the host takes what it must give back for taken by the worker",
        _KEPT,
    ),
    Bug(
        "taken-without-the-right",
        "hosting/streams.py",
        "or is_late or flag.is_set() or not right.take():",
        "or is_late or flag.is_set():",
        "a worker uses what was lent to another one",
        _KEPT,
    ),
    Bug(
        "taken-before-others",
        "hosting/streams.py",
        "or is_late or flag.is_set() or not right.take():",
        "or is_late or not right.take():",
        "a worker goes on with what others wait for",
        _KEPT,
    ),
    Bug(
        "taken-of-a-stopped-host",
        "hosting/streams.py",
        "or is_late or flag.is_set() or not right.take():",
        "or flag.is_set() or not right.take():",
        "a checkout ends without waiting, and its first statement hangs",
        _KEPT,
    ),
    Bug(
        "taken-of-a-dead-host",
        "hosting/streams.py",
        "        if self._poll.poll(0):  # nothing is to be said, so that is its end\n"
        "            self.close()\n"
        "            return False\n",
        "",
        "a host that has died is noticed by the first statement, and not by the checkout",
        _KEPT,
    ),
    Bug(
        "kept-although-told",
        "hosting/streams.py",
        "keeps = keeps and right is not None and flag is not None and not flag.is_set()",
        "keeps = keeps and right is not None",
        "each release of a contended pool costs its host a needless reset of what is kept",
        _KEPT,
    ),
]

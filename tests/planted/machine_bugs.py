"""Bugs of machines that share a cap: what Redis computes, what a machine makes of it, and what the books do then."""

from __future__ import annotations

from tests.planted.bugs import Bug

_SCRIPT = ("tests/machines/test_script.py",)
_MACHINE = ("tests/machines/test_machine.py",)
_SHARE = ("tests/core/test_share.py",)

MACHINE_BUGS = [
    # --- the script --------------------------------------------------------------------------------------
    Bug(
        "lowered-at-once",
        "machines/script.py",
        "local committed = math.max(share, limit, has)",
        "local committed = math.max(share, has)",
        "a machine that has not heard of its lower share opens what another was given",
        _SCRIPT,
    ),
    Bug(
        "open-is-not-counted",
        "machines/script.py",
        "local committed = math.max(share, limit, has)",
        "local committed = math.max(share, limit)",
        "what a machine has not closed yet is given to another",
        _SCRIPT,
    ),
    Bug(
        "late-calls-count",
        "machines/script.py",
        "if own and (own.e > epoch or (own.e == epoch and own.s >= number)) then",
        "if own and own.e > epoch then",
        "a call that was on its way for long takes back what a later one has said",
        _SCRIPT,
    ),
    Bug(
        "any-redis-will-do",
        "machines/script.py",
        "elseif about.i ~= instance then",
        "elseif false then",
        "a copy that lacks the last writes gives what was given in them",
        _SCRIPT,
    ),
    Bug(
        "no-quiet-lease",
        "machines/script.py",
        "local kept = math.max(0, about.u - now)",
        "local kept = 0",
        "after a flush a newcomer gets what others have",
        _SCRIPT,
    ),
    Bug(
        "the-dead-keep-theirs",
        "machines/script.py",
        "if record.x <= now then stale[#stale + 1] = field",
        "if false then stale[#stale + 1] = field",
        "the share of a dead machine never comes back",
        _SCRIPT,
    ),
    Bug(
        "without-turns",
        "machines/script.py",
        "return (rank - turn) % wanting < cap and 1 or 0",
        "return rank < cap and 1 or 0",
        "where there are more machines than slots, the last ones starve",
        ("tests/machines/test_simulation.py",),
    ),
    # --- the machine -------------------------------------------------------------------------------------
    Bug(
        "counted-from-the-answer",
        "machines/machine.py",
        "self.since, self.told = call.sent_at, told",
        "self.since, self.told = now, told",
        "a machine goes on when Redis has given its share away",
        _MACHINE,
    ),
    Bug(
        "any-answer-will-do",
        "machines/machine.py",
        "        if call is None or call.number != number:\n            return\n        if now >=",
        "        if call is None:\n            return\n        if now >=",
        "the answer to a call that was given up on counts for the next one",
        _MACHINE,
    ),
    Bug(
        "opens-to-the-end",
        "machines/machine.py",
        'return Part(size, opens=phase == "leased", why=self._why_of(pool))',
        "return Part(size, opens=True, why=self._why_of(pool))",
        "something is still being opened when everything must be closed",
        _MACHINE,
    ),
    Bug(
        "keeps-what-it-lost",
        "machines/machine.py",
        "return Part(0, ends=True, why=why)",
        "return Part(0, ends=False, why=why)",
        "what is lent stays open when Redis has given its share away",
        _MACHINE,
    ),
    Bug(
        "gives-back-late",
        "machines/machine.py",
        "self._committed.get(pool, 0) > max(limit, need.has)",
        "False",
        "others wait for a whole refresh for what was closed at once",
        _MACHINE,
    ),
    # --- the books ---------------------------------------------------------------------------------------
    Bug(
        "late-openings-stay",
        "core/share.py",
        "if share is not None and share.ends and self._capacity.above_cap():",
        "if False:",
        "what was being opened when a share was lost stays open",
        _SHARE,
    ),
    Bug(
        "new-pools-are-free",
        "core/share.py",
        "        self.of_new = of_new\n",
        "        self.of_new = None\n",
        "a pool that is declared before its first share opens as much as it likes",
        _SHARE,
    ),
    Bug(
        "opens-while-it-may-not",
        "core/capacity.py",
        "        if self.share is not None and not self.share.opens:\n            return True\n",
        "",
        "a machine opens although its lease runs out",
        _SHARE,
    ),
]

# Those that a simulation from a random seed finds: `python -m tests.machines.hours --planted`.
BREAK_THE_CAP = {
    "lowered-at-once",
    "open-is-not-counted",
    "late-calls-count",
    "any-redis-will-do",
    "no-quiet-lease",
    "counted-from-the-answer",
    "any-answer-will-do",
    "opens-to-the-end",
}

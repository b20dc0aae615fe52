"""The bugs. Each replaces a text that stands exactly once in its file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent.parent / "mppool"


class Bug(NamedTuple):
    """name: a word for it. why: what it would do to somebody. tests: files of tests that must find it; by
    default those of the core.
    """

    name: str
    file: str
    text: str
    planted: str
    why: str
    tests: tuple[str, ...] = ()

    def plant(self, package: Path) -> None:
        """Put the bug into a copy of the package."""
        path = package / self.file
        source = path.read_text()
        if source.count(self.text) != 1:
            raise ValueError(
                f"{self.name}: its text stands {source.count(self.text)} times in {self.file}"
            )
        path.write_text(source.replace(self.text, self.planted))


BUGS = [
    # --- the cap and the inner bounds --------------------------------------------------------------------
    Bug(
        "one-too-many",
        "core/capacity.py",
        "        if self.max_size is not None and len(slots.by_number) >= self.max_size:\n",
        "        if self.max_size is not None and len(slots.by_number) > self.max_size:\n",
        "one resource above the cap",
    ),
    Bug(
        "closing-is-free",
        "core/ledger.py",
        "        self.slots.move(slot, SlotState.CLOSING)\n        self.slots.expect_end",
        "        self.slots.remove(slot)\n        self.slots.add(slot)\n        self.slots.expect_end",
        "a slot that is being closed is taken for an open one",
    ),
    Bug(
        "identity-one-more",
        "core/capacity.py",
        "slots.by_key[key] < per_identity",
        "slots.by_key[key] <= per_identity",
        "an identity takes more than its part",
    ),
    Bug(
        "process-one-more",
        "core/capacity.py",
        "slots.levels[process] < per_process",
        "slots.levels[process] <= per_process",
        "a process takes more than its part",
    ),
    Bug(
        "any-key-at-home",
        "core/returns.py",
        "home = self._waiting.first(slot.process, slot.key)",
        "home = next((w for w in self._waiting if w.process == slot.process), None)",
        "somebody is handed a connection of another identity",
    ),
    # --- rules 1 and 2: ends of connections ---------------------------------------------------------------
    Bug(
        "detach-frees",
        "core/pool.py",
        '        """The process cannot be told anything, but may live: its waiters go, its slots stay."""\n',
        '        """Its slots go."""\n        for slot in self.slots.of(process):\n            self.ledger.free(slot)\n',
        "the end of a connection is taken for the death of its process: over the cap",
    ),
    Bug(
        "old-session-speaks",
        "core/books.py",
        "if self._sessions.get(process) == session:",
        "if process in self._sessions:",
        "what was said under an old session frees what the new one holds",
    ),
    Bug(
        "old-attach-wins",
        "core/books.py",
        "if session >= self._sessions.get(process, session):",
        "if True:",
        "a stale inventory overrules a newer one",
    ),
    Bug(
        "others-slots",
        "core/books.py",
        "        if slot is not None and slot.process == process:\n            self._touch(self.pools[slot.pool]).of_slot",
        "        if slot is not None:\n            self._touch(self.pools[slot.pool]).of_slot",
        "a process frees the slot of another one",
    ),
    Bug(
        "end-of-call-forgets-to-ask",
        "core/books.py",
        "            self._outbox.answer(process, Ask(slot.number))\n",
        "            return\n",
        "a grant that nobody has read keeps its slot for ever",
    ),
    Bug(
        "end-of-call-keeps-waiter",
        "core/books.py",
        "        waited = self._abandon(process, event.ticket, now)\n",
        "        waited = False\n",
        "a slot is granted to a call that has ended",
    ),
    Bug(
        "end-of-call-tells-nobody",
        "core/books.py",
        "            self._outbox.ask_again(process, event.ticket)\n",
        "            pass\n",
        "a thread waits for ever whose connection the server has dropped",
    ),
    Bug(
        "end-of-call-always-asks-again",
        "core/books.py",
        "        if self.tokens.call_ended(process, event.ticket, now) or waited:\n",
        "        if self.tokens.call_ended(process, event.ticket, now) or True:\n",
        "a thread that has been granted something asks for it again",
    ),
    # --- rule 3: journal, inventory, restart --------------------------------------------------------------
    Bug(
        "grant-before-record",
        "core/ledger.py",
        "        self._outbox.write_down(\n            Record(self._pool, key, number, process, generation, self.budget, old)\n        )\n        if self._breakers:\n            self._breakers.granted(key, number, now)\n        self._tell_grant(slot, ticket, opening_s, fresh=True)\n",
        "        if self._breakers:\n            self._breakers.granted(key, number, now)\n        self._tell_grant(slot, ticket, opening_s, fresh=True)\n        self._outbox.write_down(\n            Record(self._pool, key, number, process, generation, self.budget, old)\n        )\n",
        "a server that is killed in between has granted what its successor does not know",
    ),
    Bug(
        "no-erase",
        "core/ledger.py",
        "        self._outbox.write_down(Erase(slot.number))\n",
        "",
        "the next server believes in slots that are free",
    ),
    Bug(
        "adopted-unwritten",
        "core/ledger.py",
        "            self.slots.add(slot)\n            self._record(slot)\n",
        "            self.slots.add(slot)\n",
        "what an inventory brought is lost with the next server",
    ),
    Bug(
        "inventory-frees-nothing",
        "core/pool.py",
        "            if slot.number not in numbers:\n",
        "            if False:\n",
        "a grant that was lost with its connection keeps its slot for ever",
    ),
    Bug(
        "returned-is-forgotten",
        "core/pool.py",
        "            if returned is not None and returned.process == process:\n                self._brought_back(returned, now, 0.0, exchanges=False)\n",
        "            pass\n",
        "what was brought back under an old session lies aside for ever",
    ),
    Bug(
        "opened-unseen",
        "core/ledger.py",
        "                self.opened(slot, now)  # what said so was lost\n",
        "                pass\n",
        "the breaker waits for a probe that succeeded long ago",
    ),
    Bug(
        "nobody-awaited",
        "core/books.py",
        "        self._awaited.update(awaited)\n",
        "",
        "after a torn journal slots are granted that somebody holds",
    ),
    Bug(
        "awaited-for-ever",
        "core/books.py",
        "            for name in () if self._awaited else pools:\n",
        "            for name in ():\n",
        "those who wait for the last inventory are forgotten",
    ),
    Bug(
        "epoch-lost",
        "ids.py",
        "return grant_number(self.epoch, self._sequence)",
        "return grant_number(1, self._sequence)",
        "the next server gives numbers that are held already",
    ),
    Bug(
        "resize-forgotten",
        "core/control.py",
        "        self._declarations.bounds.restore(record, declared_at)\n",
        "",
        "a resize does not survive the server",
    ),
    Bug(
        "journal-fault-frees-held",
        "core/pool.py",
        "        if slot.state is SlotState.OPENING and slot.ticket is not None:\n            self.ledger.take_back(slot, now)",
        "        if slot.ticket is not None:\n            self.ledger.take_back(slot, now)",
        "a full disk frees what is in use",
    ),
    # --- waiting ------------------------------------------------------------------------------------------
    Bug(
        "answered-twice",
        "core/pool.py",
        "if name in self.waiting.by_name or name in self.slots.by_ticket:",
        "if name in self.waiting.by_name:",
        "a repeated checkout takes a second slot",
    ),
    Bug(
        "deadline-of-another",
        "core/waiting.py",
        "return waiter is None or waiter.serial != serial",
        "return waiter is None",
        "a waiter is refused at the deadline of one that has gone",
    ),
    Bug(
        "late-refusal",
        "core/waiting.py",
        "while self.next_deadline() <= now:",
        "while self.next_deadline() < now:",
        "a server that is busy for ever: a deadline that has come is never done with",
    ),
    Bug(
        "refused-at-once-although-closed",
        "core/pool.py",
        "if is_known or self.generations.closed or self.breakers or self.waiting.by_name:",
        "if is_known or self.breakers or self.waiting.by_name:",
        "who asks a closed pool again and again is told that it is full, and goes on",
    ),
    Bug(
        "refused-under-an-old-session",
        "core/books.py",
        "self.pools.get(event.pool) if self._sessions.get(process) == session else None",
        "self.pools.get(event.pool)",
        "a process whose session is over is refused again and again, and never attaches",
    ),
    Bug(
        "closed-forgets-waiters",
        "core/refusals.py",
        '            self.refuse(waiter.process, waiter.ticket, "closed", text)\n',
        "            pass\n",
        "those who wait when a pool is closed are never answered",
    ),
    Bug(
        "free-serves-nobody",
        "core/pool.py",
        "            self.ledger.died(slot)\n            self._was_freed(slot.key, before)\n        self._settle(now)\n",
        "            self.ledger.died(slot)\n            self._was_freed(slot.key, before)\n",
        "the slots of the dead are noticed only at somebody's next word",
    ),
    # --- sharing and reclaim ------------------------------------------------------------------------------
    Bug(
        "asked-again-at-once",
        "core/reclaim.py",
        "            self._in_peace[process] = now + sharing.ANSWER_S\n",
        "            pass\n",
        "a waiter whom only another identity could help: server and process talk without end",
    ),
    Bug(
        "keep-before-calm",
        "core/pool.py",
        "        if (told := self.reclaimer.brought_back(process, now, given=given)) is not None:\n            self._outbox.tell(process, told)\n        if isinstance(verdict, Waiter):\n            self.waiting.served(process, verdict.ticket)\n            self.ledger.give(slot, verdict.ticket, self.openings.measured(), verdict.lane)\n        elif verdict is None:\n            self.ledger.keep(slot)\n",
        "        if isinstance(verdict, Waiter):\n            self.waiting.served(process, verdict.ticket)\n            self.ledger.give(slot, verdict.ticket, self.openings.measured(), verdict.lane)\n        elif verdict is None:\n            self.ledger.keep(slot)\n        if (told := self.reclaimer.brought_back(process, now, given=given)) is not None:\n            self._outbox.tell(process, told)\n",
        "what is kept is brought back at once: a round trip for nothing",
    ),
    Bug(
        "sweep-too-few",
        "core/reclaim.py",
        "sweep = self._slots.levels[donor] if everything else asked.wanted",
        "sweep = asked.wanted",
        "the idle resource of the wanted identity is never looked at",
    ),
    Bug(
        "silent-masks",
        "core/reclaim.py",
        "return self._timely_wanted",
        "return self._wanted",
        "a stopped process masks what lies idle elsewhere (rule 7)",
    ),
    Bug(
        "group-not-ranked-again",
        "core/waiting.py",
        "                self._rank_group(head)\n            self._rank_process(process)\n        return waiter",
        "                pass\n            self._rank_process(process)\n        return waiter",
        "the next waiter of a group is never in line",
    ),
    Bug(
        "spare-not-ranked-again",
        "core/reclaim.py",
        "            self._timely_wanted += change\n        self.level_changed(process)",
        "            self._timely_wanted += change",
        "what was not brought back is never asked for again",
    ),
    Bug(
        "hung-close-masks",
        "core/ledger.py",
        "self.slots.expect_end(slot, now + ANSWER_S, promised_to)",
        "self.slots.expect_end(slot, now + 3600.0, promised_to)",
        "a close that hangs masks what lies idle elsewhere",
    ),
    Bug(
        "contended-not-again",
        "core/pool.py",
        "        self.reclaimer.forget(process)\n        if held:\n",
        "        if held:\n",
        "after a new session the process is believed to be contended, and is not",
    ),
    Bug(
        "contended-for-ever",
        "core/reclaim.py",
        "        orders = [(process, self._at_ease(process)) for process in {**self.asked, **self._called}]\n        for process in list(self.asked):\n            self._expect_nothing(process)\n        self._called.clear()\n        return orders\n",
        "        self.asked.clear()\n        return []\n",
        "a process brings every resource back for ever though nobody waits",
    ),
    Bug(
        "first-in-line-blocks",
        "core/reclaim.py",
        "        for taker in self._takers(now):\n",
        "        for taker in list(self._takers(now))[:1]:\n",
        "a waiter whom nobody can help holds up all others",
    ),
    Bug(
        "blocked-takes-anything",
        "core/capacity.py",
        "        if self.blocked_by_identity(waiter):\n            return slot.key == waiter.key\n",
        "",
        "resources are closed for a waiter whom that does not help",
    ),
    Bug(
        "excess-unasked",
        "core/reclaim.py",
        "if self._capacity.excess(now) > self._asked_for(now):",
        "if not self._waiting.by_name and self._capacity.excess(now) > self._asked_for(now):",
        "a lowered cap is never reached while somebody waits",
    ),
    Bug(
        "excess-kept",
        "core/returns.py",
        "        if self._capacity.excess(now):\n",
        "        if False:\n",
        "what is above a lowered cap is put back on the shelf",
    ),
    Bug(
        "excess-without-deadline",
        "core/reclaim.py",
        "        if not (self._waiting.by_name or self._capacity.must_give()):\n            return math.inf\n",
        "        if not self._waiting.by_name:\n            return math.inf\n",
        "one stopped process, and a lowered cap is never reached by the others",
    ),
    Bug(
        "stale-kept",
        "core/generations.py",
        "return slot.generation < newest and not (newest",
        "return False and not (newest",
        "a reset leaves old resources in use for ever",
    ),
    Bug(
        "stale-keys-for-ever",
        "core/generations.py",
        "        self._stale_before.clear()\n",
        "",
        "every identity whose backend ever failed is remembered as long as the server lives",
    ),
    Bug(
        "one-close-for-each",
        "core/returns.py",
        "        if outside <= self._slots.on_the_way(now) or self._capacity.opens_enough():\n            return None\n",
        "",
        "one waiter, and everything that is brought back is closed",
    ),
    # --- the breaker --------------------------------------------------------------------------------------
    Bug(
        "every-failure-a-step",
        "core/breaker.py",
        "        elif granted_at <= self._stepped_at:\n            return\n",
        "",
        "eight openings that fail together: the longest back-off at once",
    ),
    Bug(
        "many-probes",
        "core/breaker.py",
        '            self.state = "probing"\n',
        "",
        "everybody tries at once what one should try",
    ),
    Bug(
        "lost-probe",
        "core/breaker.py",
        "            breaker.probe_lost(number)\n",
        "            pass\n",
        "a probe that dies with its process: nobody ever tries again",
    ),
    Bug(
        "back-off-without-end",
        "core/breaker.py",
        "pause = min(FIRST_BACK_OFF_S * 2**self._steps, LONGEST_BACK_OFF_S)",
        "pause = FIRST_BACK_OFF_S * 2**self._steps",
        "after an hour's outage the pool stays shut for another one",
    ),
    Bug(
        "shut-without-deadline",
        "core/pool.py",
        "            times.append(self.breakers.next_retry(since))\n",
        "            pass\n",
        "those who wait for a broken database are forgotten when it works again",
    ),
    Bug(
        "one-breaker-for-all",
        "core/breaker.py",
        "        breaker = self.get(key)\n        return breaker is None or",
        "        breaker = next(iter(self.values()), None)\n        return breaker is None or",
        "one identity's refused logins block everybody",
    ),
    # --- declarations, numbers ----------------------------------------------------------------------------
    Bug(
        "oldest-wins",
        "core/declarations.py",
        "if made_at <= self.declared_at:",
        "if made_at > self.declared_at:",
        "a rolling restart goes back to the old bounds",
    ),
    Bug(
        "creation-number",
        "core/ledger.py",
        'self.counted_earlier({"opened": count})',
        "pass",
        "creation numbers begin again under every server",
    ),
    Bug(
        "level-kept",
        "core/table.py",
        "        _decrement(self.by_key, slot.key)\n",
        "",
        "the count of an identity only ever grows",
    ),
]

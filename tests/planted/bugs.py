"""The bugs. Each replaces a text that stands exactly once in its file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent.parent / "mppool"


class Bug(NamedTuple):
    """name: a word for it. why: what it would do to somebody. tests: files of tests that shall find it; by
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
        "core/bounds.py",
        "len(books.slots.by_number) >= books.max_size:",
        "len(books.slots.by_number) > books.max_size:",
        "one resource above the cap",
    ),
    Bug(
        "closing-is-free",
        "core/pool.py",
        "        self.slots.move(slot, SlotState.CLOSING)\n        self.slots.expect_end",
        "        self.slots.remove(slot)\n        self.slots.add(slot)\n        self.slots.expect_end",
        "a slot that is being closed is taken for an open one",
    ),
    Bug(
        "identity-one-more",
        "core/bounds.py",
        "books.slots.by_key[key] < per_identity",
        "books.slots.by_key[key] <= per_identity",
        "an identity takes more than its part",
    ),
    Bug(
        "process-one-more",
        "core/bounds.py",
        "books.slots.levels[process] < per_process",
        "books.slots.levels[process] <= per_process",
        "a process takes more than its part",
    ),
    Bug(
        "any-key-at-home",
        "core/returns.py",
        "home = books.waiting.first(process, slot.key)",
        "home = next((w for w in books.waiting if w.process == process), None)",
        "somebody is handed a connection of another identity",
    ),
    # --- rules 1 and 2: ends of connections ---------------------------------------------------------------
    Bug(
        "detach-frees",
        "core/pool.py",
        '        """The process cannot be told anything, but may live: its waiters go, its slots stay."""\n',
        '        """Its slots go."""\n        for slot in self.slots.of(process):\n            self.free(slot)\n',
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
        "if slot is not None and slot.process == process:",
        "if slot is not None:",
        "a process frees the slot of another one",
    ),
    Bug(
        "end-of-call-forgets-to-ask",
        "core/books.py",
        "        self._ask_about(process, event)\n",
        "",
        "a grant that nobody has read keeps its slot for ever",
    ),
    Bug(
        "end-of-call-keeps-waiter",
        "core/books.py",
        "        self._abandon(process, event.ticket, now)\n        self.tokens.call_ended",
        "        self.tokens.call_ended",
        "a slot is granted to a call that has ended",
    ),
    # --- rule 3: journal, inventory, restart --------------------------------------------------------------
    Bug(
        "grant-before-record",
        "core/pool.py",
        "        self.write_down(Record(self.name, key, number, process, generation))\n"
        "        self._tell_grant(slot, ticket, fresh=True)\n",
        "        self._tell_grant(slot, ticket, fresh=True)\n"
        "        self.write_down(Record(self.name, key, number, process, generation))\n",
        "a server that is killed in between has granted what its successor does not know",
    ),
    Bug(
        "no-erase",
        "core/pool.py",
        "        self.write_down(Erase(slot.number))\n",
        "",
        "the next server believes in slots that are free",
    ),
    Bug(
        "adopted-unwritten",
        "core/inventory.py",
        "        books.write_down(Record(books.name, item.key, item.number, process, item.generation))\n",
        "",
        "what an inventory brought is lost with the next server",
    ),
    Bug(
        "inventory-frees-nothing",
        "core/inventory.py",
        "        if slot.number not in numbers:\n            books.free(slot)\n",
        "        pass\n",
        "a grant that was lost with its connection keeps its slot for ever",
    ),
    Bug(
        "returned-is-forgotten",
        "core/inventory.py",
        "        if returned is not None and returned.process == process:\n"
        "            returns.answer(books, returned, now)\n",
        "        pass\n",
        "what was brought back under an old session lies aside for ever",
    ),
    Bug(
        "opened-unseen",
        "core/inventory.py",
        "            books.opened(slot, now)  # what said so was lost\n",
        "            pass\n",
        "the breaker waits for a probe that succeeded long ago",
    ),
    Bug(
        "nobody-awaited",
        "core/books.py",
        "        self._around.awaited = set(awaited)\n",
        "",
        "after a torn journal slots are granted that somebody holds",
    ),
    Bug(
        "awaited-for-ever",
        "core/books.py",
        "            self._around.awaited.discard(process)\n            if not self._around.awaited:\n",
        "            self._around.awaited.discard(process)\n            if self._around.awaited:\n",
        "those who wait for the last inventory are forgotten",
    ),
    Bug(
        "epoch-lost",
        "core/books.py",
        "return grant_number(self.epoch, self._sequence)",
        "return grant_number(1, self._sequence)",
        "the next server gives numbers that are held already",
    ),
    Bug(
        "resize-forgotten",
        "core/pool.py",
        "        self.max_size, self.min_size = record.max_size, record.min_size\n",
        "",
        "a resize does not survive the server",
    ),
    Bug(
        "journal-fault-frees-held",
        "core/pool.py",
        "        if slot.state is SlotState.OPENING and slot.ticket is not None:\n            self.free(slot)",
        "        if slot.ticket is not None:\n            self.free(slot)",
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
        "closed-forgets-waiters",
        "core/pool.py",
        '            self._refuse(waiter.process, waiter.ticket, "closed", f"pool {self.name!r} was closed")\n',
        "            pass\n",
        "those who wait when a pool is closed are never answered",
    ),
    Bug(
        "free-serves-nobody",
        "core/pool.py",
        "        self._forget_process(process)\n        for slot in self.slots.of(process):\n"
        '            self.counters["died_with_process"] += 1\n            self.free(slot)\n'
        "        self._settle(now)\n",
        "        self._forget_process(process)\n        for slot in self.slots.of(process):\n"
        '            self.counters["died_with_process"] += 1\n            self.free(slot)\n',
        "the slots of the dead are noticed only at somebody's next word",
    ),
    # --- sharing and reclaim ------------------------------------------------------------------------------
    Bug(
        "earned-ignored",
        "core/pool.py",
        "        return now >= self.earned_at(slot)\n",
        "        return True\n",
        "where logins are dear, slots move at every release, and hardly any work is done",
    ),
    Bug(
        "never-earned",
        "core/pool.py",
        "        return now >= self.earned_at(slot)\n",
        "        return now < self.earned_at(slot)\n",
        "only what was opened a moment ago moves",
    ),
    Bug(
        "earned-since-the-grant",
        "core/pool.py",
        "        slot.opened_at = now\n",
        "",
        "a slow login counts as use: what has just been opened moves on",
    ),
    Bug(
        "opening-times-never-noted",
        "core/pool.py",
        "            self.openings.note(slot.key, event.seconds)\n",
        "",
        "logins are taken to cost 50 ms, whatever they cost",
    ),
    Bug(
        "opening-time-of-the-first",
        "core/sharing.py",
        "        self._by_key[key] = before + _WEIGHT * (seconds - before)\n",
        "        self._by_key[key] = before\n",
        "one slow login at the beginning, and slots never move again",
    ),
    Bug(
        "opening-times-for-ever",
        "core/sharing.py",
        "            self._by_key.popitem(last=False)\n",
        "            pass\n",
        "every identity that ever logged in is remembered as long as the server lives",
    ),
    Bug(
        "opening-time-untold",
        "core/pool.py",
        "            self.openings.measured(),\n",
        "            0.0,\n",
        "processes do not know what a login costs, and ask at once",
    ),
    Bug(
        "surplus-at-once",
        "core/returns.py",
        "is_surplus = home is None and idle_s >= sharing.surplus_after_s(books.openings.of(slot.key))",
        "is_surplus = home is None",
        "whatever is brought back while nobody waits at home moves, though it was opened a moment ago",
    ),
    Bug(
        "surplus-never",
        "core/returns.py",
        "is_surplus = home is None and idle_s >= sharing.surplus_after_s(books.openings.of(slot.key))",
        "is_surplus = False",
        "the load shifts, and what was opened for it stays idle where it was",
    ),
    Bug(
        "surplus-though-wanted-at-home",
        "core/returns.py",
        "is_surplus = home is None and idle_s",
        "is_surplus = idle_s",
        "a resource is closed for somebody else beside a waiter of its own process",
    ),
    Bug(
        "surplus-of-the-past",
        "core/reclaim.py",
        "        idle_s = sharing.surplus_after_s(books.openings.measured())\n",
        "        idle_s = sharing.surplus_after_s(0.0)\n",
        "processes bring back in vain what is not surplus yet",
    ),
    Bug(
        "none-waits-like-all",
        "core/sharing.py",
        "return 1 if starves or taker_level <= 0 else taker_level + 2\n",
        "return 1 if starves else taker_level + 2\n",
        "fewer slots than processes: those without one never get one",
    ),
    Bug(
        "fair-by-one",
        "core/sharing.py",
        "return 1 if starves or taker_level <= 0 else taker_level + 2\n",
        "return 1 if starves or taker_level <= 0 else taker_level + 1\n",
        "a uniform load moves slots to and fro for ever",
    ),
    Bug(
        "fair-by-three",
        "core/sharing.py",
        "return 1 if starves or taker_level <= 0 else taker_level + 2\n",
        "return 1 if starves or taker_level <= 0 else taker_level + 3\n",
        "a process with two more than another keeps them for ever",
    ),
    Bug(
        "exchange-of-equals",
        "core/sharing.py",
        "return 1 if starves or taker_level <= 0 else taker_level + 2\n",
        "return 1 if starves or taker_level <= 0 else taker_level\n",
        "under a uniform load equals exchange their slots for ever",
    ),
    Bug(
        "promised-not-counted-at-returns",
        "core/returns.py",
        "    return giver >= sharing.least_giving_level(taker + promised, starves=starves)\n",
        "    return giver >= sharing.least_giving_level(taker, starves=starves)\n",
        "a process without slots takes as many as it has waiters, each of them as its first",
    ),
    Bug(
        "promised-not-counted-when-asking",
        "core/reclaim.py",
        "        level += self._promised_to(books, taker.process)\n",
        "",
        "for a process without slots as many are asked for as it has waiters",
    ),
    Bug(
        "promises-for-ever",
        "core/reclaim.py",
        "            self._timely_wanted -= asked.wanted\n            self._break_promises(asked)\n",
        "            self._timely_wanted -= asked.wanted\n",
        "a stopped process has promised a slot, and nobody else is asked for one",
    ),
    Bug(
        "hung-promises-for-ever",
        "core/table.py",
        "            _decrement(self._promised_to, slot.promised_to)\n",
        "            pass\n",
        "whoever was once promised a slot has a claim to one fewer for ever",
    ),
    Bug(
        "one-is-enough",
        "core/returns.py",
        "        if books.waiting.count_of_process(head.process) <= promised:\n            continue\n",
        "        if promised:\n            return None\n",
        "two processes without slots: the second is not served before the first",
    ),
    Bug(
        "starving-for-ever",
        "core/waiting.py",
        "        if waiter is not None:\n            self._starving.pop((process, waiter.key), None)\n",
        "",
        "a process that once starved takes from equals for ever",
    ),
    Bug(
        "starving-after-the-last",
        "core/waiting.py",
        "        if waiter.key not in groups:\n            self._starving.pop((process, waiter.key), None)\n",
        "",
        "a group without waiters stands in line",
    ),
    Bug(
        "starving-comes-last",
        "core/waiting.py",
        "            return (*sharing.rank(0, starves_since), waiter.serial)\n",
        "            pass\n",
        "those that starve wait behind all that do not",
    ),
    Bug(
        "starving-in-vain",
        "core/returns.py",
        "    starves = books.waiting.is_starving(waiter)\n",
        "    starves = False\n",
        "jobs of an hour in one process: whoever else comes there waits for an hour",
    ),
    Bug(
        "starving-unasked",
        "core/reclaim.py",
        "        starves = books.waiting.is_starving(taker)\n",
        "        starves = False\n",
        "nobody is asked to give to those that starve",
    ),
    Bug(
        "starving-unsettled",
        "core/pool.py",
        "        if self.waiting.starves(process, ticket, now):\n            self._settle(now)\n",
        "        self.waiting.starves(process, ticket, now)\n",
        "that somebody starves is noticed at somebody's next word",
    ),
    Bug(
        "gave-and-comes-first",
        "core/pool.py",
        "            self.waiting.gave(slot.process, now)\n",
        "            pass\n",
        "whoever gave its slot away gets it back, because it came first: two logins for nothing",
    ),
    Bug(
        "earned-without-deadline",
        "core/reclaim.py",
        "            self._earned_at,\n        ]",
        "        ]",
        "a slot has earned its move, and nobody looks",
    ),
    Bug(
        "one-opening-more",
        "core/bounds.py",
        "books.slots.in_state(SlotState.OPENING) >= limit\n",
        "books.slots.in_state(SlotState.OPENING) > limit\n",
        "one login more at a time than the database bears",
    ),
    Bug(
        "openings-of-min-size",
        "core/bounds.py",
        "    if opens_enough(books):\n        return False\n",
        "",
        "`min_size` and those who come first open as many at a time as they like",
    ),
    Bug(
        "closed-for-nobody",
        "core/returns.py",
        "on_the_way(now) or bounds.opens_enough(books):",
        "on_the_way(now):",
        "resources are closed for those who may not open now",
    ),
    Bug(
        "asked-for-nobody",
        "core/reclaim.py",
        "        if bounds.opens_enough(books) and not bounds.above_cap(books):\n            return  # nobody could use a slot that becomes free\n",
        "",
        "slots are asked for that nobody could use now",
    ),
    Bug(
        "asked-again-at-once",
        "core/reclaim.py",
        "            self._in_peace[process] = now + sharing.ANSWER_S\n",
        "            pass\n",
        "a waiter whom only another identity could help: server and process talk without end",
    ),
    Bug(
        "keep-before-calm",
        "core/returns.py",
        "    books.reclaimer.brought_back(books, process, now, given=False)\n"
        "    if home is not None:\n        books.grant_kept(slot, home)\n"
        "    else:\n        books.tell(process, Keep(slot.number))\n",
        "    if home is not None:\n        books.grant_kept(slot, home)\n"
        "    else:\n        books.tell(process, Keep(slot.number))\n"
        "    books.reclaimer.brought_back(books, process, now, given=False)\n",
        "what is kept is brought back at once: a round trip for nothing",
    ),
    Bug(
        "sweep-too-few",
        "core/reclaim.py",
        "sweep = books.slots.levels[donor] if everything else asked.wanted",
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
        "            self._rank_group(head)\n        if waiter is oldest",
        "            pass\n        if waiter is oldest",
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
        "core/pool.py",
        "self.slots.expect_end(slot, now + sharing.ANSWER_S, promised_to)",
        "self.slots.expect_end(slot, now + 3600.0, promised_to)",
        "a close that hangs masks what lies idle elsewhere",
    ),
    Bug(
        "contended-not-again",
        "core/inventory.py",
        "    books.reclaimer.forget(process)\n",
        "",
        "after a new session the process is believed to be contended, and is not",
    ),
    Bug(
        "contended-for-ever",
        "core/reclaim.py",
        "        for process in list(self.asked):\n            self._let_go(books, process)\n",
        "        self.asked.clear()\n",
        "a process brings every resource back for ever though nobody waits",
    ),
    Bug(
        "first-in-line-blocks",
        "core/reclaim.py",
        "        for taker in self._takers(books, now):\n",
        "        for taker in list(self._takers(books, now))[:1]:\n",
        "a waiter whom nobody can help holds up all others",
    ),
    Bug(
        "blocked-takes-anything",
        "core/bounds.py",
        "    if blocked_by_identity(books, waiter):\n        return slot.key == waiter.key\n",
        "",
        "resources are closed for a waiter whom that does not help",
    ),
    Bug(
        "excess-unasked",
        "core/reclaim.py",
        "if bounds.excess(books, now) > self._asked_for(now):",
        "if not books.waiting and bounds.excess(books, now) > self._asked_for(now):",
        "a lowered cap is never reached while somebody waits",
    ),
    Bug(
        "excess-kept",
        "core/returns.py",
        "if books.closed or books.upkeep.is_stale(books, slot) or bounds.excess(books, now):",
        "if books.closed or books.upkeep.is_stale(books, slot):",
        "what is above a lowered cap is put back on the shelf",
    ),
    Bug(
        "excess-without-deadline",
        "core/reclaim.py",
        "        if not books.waiting and not bounds.above_cap(books):\n            return math.inf\n",
        "        if not books.waiting:\n            return math.inf\n",
        "one stopped process, and a lowered cap is never reached by the others",
    ),
    Bug(
        "stale-kept",
        "core/returns.py",
        "if books.closed or books.upkeep.is_stale(books, slot) or bounds.excess(books, now):",
        "if books.closed or bounds.excess(books, now):",
        "a reset leaves old resources in use for ever",
    ),
    Bug(
        "stale-keys-for-ever",
        "core/upkeep.py",
        "        self._stale_before.clear()\n",
        "",
        "every identity whose backend ever failed is remembered as long as the server lives",
    ),
    Bug(
        "one-close-for-each",
        "core/returns.py",
        "    if outside <= books.slots.on_the_way(now) or bounds.opens_enough(books):\n        return None\n",
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
        "core/inventory.py",
        'books.counted_earlier({"opened": opened})',
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

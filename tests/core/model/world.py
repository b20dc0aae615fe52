"""All of the model together: the steps that are possible now, and what must never be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from mppool.core.books import Books
from mppool.core.decisions import Grant
from mppool.core.events import Attach
from mppool.core.slot import SlotState
from mppool.core.table import OPENING_PATIENCE_S, SlotTable
from mppool.ids import GrantNumber, ProcessId
from mppool.options import PoolOptions
from tests.core.model.parts import POOL, Channel, Rules, Thread, Violation
from tests.core.model.server import Server, ServerKilled
from tests.core.model.worker import Worker

NAMES = "PQRSTUVWXYZABCDE"
MOST_PROCESSES = 5
FIRST_PID = 100

Step = tuple[str, Callable[..., None], tuple[Any, ...]]
"""What it is called in a trace, and how it is done."""


class World:
    """Processes, a server, channels between them, and a clock."""

    def __init__(
        self,
        options: PoolOptions,
        *,
        processes: int,
        threads: int = 1,
        keys: tuple[str, ...] = ("k",),
        rules: Rules | None = None,
        opening_s: float = 0.0,
    ) -> None:
        self.opening_s = opening_s
        self.options = options
        self.keys = keys
        self.rules = rules or Rules()
        self.now = 1000.0
        self.server = Server(self.rules)
        self.threads = threads
        self.workers: list[Worker] = []
        self.deaths: list[ProcessId] = []
        # A thread that has a resource keeps it.
        self.holding = False
        for _ in range(processes):
            self.new_worker()
        # The cap, or more for as long as what was granted under a higher cap has not come back.
        self.cap = options.max_size
        self.ceiling = options.max_size
        # The same of `max_opening`: an inventory may bring more than that.
        self.opening_ceiling = options.max_opening or 0

    def new_worker(self) -> Worker:
        process = ProcessId(FIRST_PID + len(self.workers), 1)
        worker = Worker(process, self.threads, self.options, self.rules)
        worker.now = self.now
        worker.opening_s = self.opening_s
        self.workers.append(worker)
        return worker

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.alive]

    def worker_of(self, process: ProcessId) -> Worker:
        return self.workers[process.pid - FIRST_PID]

    def name(self, process: ProcessId) -> str:
        return NAMES[process.pid - FIRST_PID]

    # --- steps that nobody can hold up for ever ----------------------------------------------------------------

    def ordinary_steps(self) -> Iterator[Step]:
        """What the parts do by themselves, sooner or later."""
        for worker in self.living():
            if not worker.stopped:
                yield from self._errand_steps(worker)
                for thread in worker.threads:
                    yield from self._thread_steps(worker, thread)
        if self.server.alive:
            yield from self._server_steps()

    def _server_steps(self) -> Iterator[Step]:
        server = self.server
        for channel in server.channels:
            who = self._whose(channel)
            if channel.to_server:
                yield (
                    f"server reads {word(channel.to_server[0])} of {who}",
                    self.server_reads,
                    (channel,),
                )
            elif channel.severed:
                yield f"server sees the end of {who}", server.see_end, (channel, self.now)
        for process in self.deaths:
            yield (
                f"server sees the death of {self.name(process)}",
                self.server_sees_death,
                (process,),
            )

    def _errand_steps(self, worker: Worker) -> Iterator[Step]:
        name = self.name(worker.process)
        if worker.inherited and self.rules.children_close_copies:
            yield f"{name} closes what it inherited", worker.close_inherited, ()
        if worker.sweeping is not None:
            yield f"{name} sweeps its shelf", worker.sweep, ()
        elif worker.errand is not None and worker.errand.to_process:
            decision = worker.errand.to_process[0]
            yield f"{name} reads {word(decision)}", worker.read_errand, ()
        elif worker.errand is not None and worker.errand.severed:
            yield f"{name} notices that its session is lost", worker.lose_session, ()
        if worker.errand is None and self.server.alive and worker.wants_session():
            yield (
                f"{name} attaches with {[number & 0xFFFF for number in worker.table]}",
                self.attach,
                (worker,),
            )
        for entry in worker.table.values():
            if entry.state == "closing":
                yield f"{name} has closed #{entry.number}", worker.finish_close, (entry.number,)

    def _thread_steps(self, worker: Worker, thread: Thread) -> Iterator[Step]:
        name = f"{self.name(worker.process)}{thread.name}"
        phase = thread.phase
        if phase == "missed":
            yield f"{name} enqueues itself", worker.enqueue, (thread,)
        elif phase == "enqueued" and self._may_ask(worker, thread):
            yield f"{name} looks again, asks", self.ask, (worker, thread)
        elif phase == "asked":
            assert thread.call is not None
            if thread.call.to_process:
                yield (
                    f"{name} reads {word(thread.call.to_process[0])}",
                    worker.read_reply,
                    (thread,),
                )
            elif thread.call.severed:
                yield f"{name}: its call fails", worker.call_fails, (thread,)
        elif phase == "have":
            yield f"{name} registers its grant", worker.register, (thread,)
        elif phase == "opening":
            yield f"{name} OPENS #{thread.entry}", worker.open_succeeds, (thread,)
        elif phase == "using" and not self.holding:
            yield f"{name} puts #{thread.entry} back", worker.append_to_shelf, (thread,)
        elif phase == "appended":
            yield f"{name} looks who waits", worker.look_who_waits, (thread,)

    def _may_ask(self, worker: Worker, thread: Thread) -> bool:
        """Not again under a session that is over: it would be rejected as often as it asks."""
        attached = worker.attached and self.server.alive
        return attached and thread.rejected_under != worker.session

    # --- steps that may or may not happen ------------------------------------------------------------------------

    def optional_steps(self) -> Iterator[Step]:
        """What an application may do."""
        for worker in self.living():
            if worker.stopped:
                continue
            name = self.name(worker.process)
            for thread in worker.threads:
                if thread.phase == "idle" and thread.checkouts_left and not worker.closed:
                    for key in self.keys:
                        yield (
                            f"{name}{thread.name} wants {key!r}",
                            worker.look_at_shelf,
                            (thread, key, None),
                        )
                elif thread.phase == "queued":
                    yield f"{name}{thread.name} starves", worker.starve, (thread,)
                elif thread.phase == "using":
                    yield f"{name}{thread.name} discards #{thread.entry}", worker.discard, (thread,)
                elif thread.phase == "opening":
                    yield f"{name}{thread.name} fails to open", worker.open_fails, (thread,)

    def disturbances(self) -> Iterator[Step]:
        """What goes wrong."""
        if self.server.alive:
            yield "server is killed", self.kill_server, ()
            for channel in self.server.channels:
                if not channel.severed:
                    who = self._whose(channel)
                    yield f"the connection of {who} ends", self.cut, (channel,)
        for worker in self.living():
            name = self.name(worker.process)
            if not worker.stopped:
                for thread in worker.threads:
                    if thread.phase in ("enqueued", "asked", "queued", "have"):
                        yield f"{name}{thread.name} gives up", worker.give_up, (thread,)
            if len(self.workers) < MOST_PROCESSES:
                yield f"{name} forks", self.fork, (worker,)
            yield f"{name} is killed", self.kill, (worker,)

    def cut(self, channel: Channel) -> None:
        channel.severed = True

    def kill(self, worker: Worker) -> None:
        worker.alive = False
        worker.table.clear()
        self.deaths.append(worker.process)
        worker.close_inherited()
        for channel in self.server.channels:
            if channel.process == worker.process:
                channel.end()

    def fork(self, parent: Worker) -> Worker:
        child = self.new_worker()
        own = [channel for channel in self.server.channels if channel.process == parent.process]
        child.be_forked_from(parent, [*parent.inherited, *own])
        return child

    def kill_server(self) -> None:
        self.server.be_killed()

    def start_server(self, *, torn: bool = False) -> None:
        living = {worker.process for worker in self.living()}
        members = {worker.process for worker in self.living() if worker.is_member}
        self.deaths.clear()  # the new server looks itself who lives
        self.server.restart(members if torn else None, living, self.now)
        if torn:
            self.resized(self.options.max_size)  # a resize is lost with the journal

    # --- how the steps are done ----------------------------------------------------------------------------------

    def attach(self, worker: Worker) -> None:
        self.server.channels.append(worker.attach(self.server.new_session()))

    def ask(self, worker: Worker, thread: Thread) -> None:
        worker.look_again_and_ask(thread)
        if thread.phase == "asked":
            assert thread.call is not None
            self.server.channels.append(thread.call)

    def server_reads(self, channel: Channel) -> None:
        attach = channel.to_server[0]
        if isinstance(attach, Attach):
            self.worker_of(channel.process).is_member = True
            self.opening_ceiling += sum(item.state == "opening" for item in attach.held)
        try:
            self.server.read(channel, self.now)
        except ServerKilled:
            self.kill_server()
        self.server.dies_after = None

    def server_sees_death(self, process: ProcessId) -> None:
        self.deaths.remove(process)
        self.server.see_death(process, self.now)

    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers:
            worker.now = self.now
        if self.server.alive:
            due = self.server.books.next_deadline(self.now - seconds)
            if due is not None and due <= self.now:
                self.server.tick(self.now)
            self._check_time()

    def do(self, step: Step) -> None:
        """Do a step and look whether anything is wrong now."""
        _, action, arguments = step
        action(*arguments)
        self._forget_finished_calls()
        self.check()

    def _forget_finished_calls(self) -> None:
        """A connection without a call on it says nothing any more, also not by its end."""
        calls = [id(thread.call) for worker in self.workers for thread in worker.threads]
        for channel in list(self.server.channels):
            ends = channel.severed or channel.ended
            if channel.thread is not None and not ends and id(channel) not in calls:
                self.server.channels.remove(channel)

    def drain(self, most: int = 3000) -> int:
        """Do what the parts do by themselves until nothing is left to do. No time passes."""
        for done in range(most):
            step = next(self.ordinary_steps(), None)
            if step is None:
                return done
            self.do(step)
        raise Violation(f"after {most} steps at one instant there is still more to do: {step}")

    # --- what must never be --------------------------------------------------------------------------------------

    def check(self) -> None:
        self._check_bounds()
        self._check_holders()
        if self.server.alive:
            self._check_openings()
            check_tables(self.server.books)

    def resized(self, cap: int | None) -> None:
        """The cap is another one from now on."""
        self.cap = cap
        granted = self._granted()
        self.ceiling = None if cap is None else max(cap, granted, self.ceiling or granted)

    def _check_bounds(self) -> None:
        entries = [entry for worker in self.living() for entry in worker.table.values()]
        if self.cap is not None:
            assert self.ceiling is not None
            self.ceiling = max(self.cap, min(self.ceiling, self._granted()))
            if len(entries) > self.ceiling:
                raise Violation(f"OVER CAP: {len(entries)} resources, {self.ceiling} allowed")
        most = self.options.max_per_identity
        for key, count in Counter(entry.key for entry in entries).items():
            if most is not None and count > most:
                raise Violation(f"OVER max_per_identity: {count} resources of {key!r}")
        most = self.options.max_per_process
        for worker in self.living():
            if most is not None and len(worker.table) > most:
                raise Violation(f"OVER max_per_process: {len(worker.table)} resources in one")

    def _check_openings(self) -> None:
        """Nobody opens more at a time than is allowed, but for what inventories brought."""
        most = self.options.max_opening
        if most is None:
            return
        for pool in self.server.books.pools.values():
            since = self.now - OPENING_PATIENCE_S
            opening = sum(
                slot.state is SlotState.OPENING and slot.granted_at > since for slot in pool.slots
            )
            self.opening_ceiling = max(most, min(self.opening_ceiling, opening))
            if opening > self.opening_ceiling:
                raise Violation(f"OVER max_opening: {opening} are being opened, {most} allowed")

    def _granted(self) -> int:
        """Resources, and grants that may still become resources."""
        held = sum(len(worker.table) for worker in self.living())
        channels = [t.call for w in self.living() for t in w.threads if t.call is not None]
        channels += [w.errand for w in self.living() if w.errand is not None]
        on_the_way = [m for channel in channels for m in channel.to_process]
        on_the_way += [t.grant for w in self.living() for t in w.threads if t.grant is not None]
        return held + sum(isinstance(m, Grant) and m.fresh and not m.instead_of for m in on_the_way)

    def _check_holders(self) -> None:
        holders = Counter(number for worker in self.living() for number in worker.table)
        if holders and max(holders.values()) > 1:
            raise Violation(f"TWO HOLDERS of one grant: {holders.most_common(1)}")
        for worker in self.living():
            for thread in worker.threads:
                entry = worker.table.get(thread.entry) if thread.entry is not None else None
                if entry is not None and entry.key != thread.key:
                    raise Violation(
                        f"WRONG IDENTITY: {thread.key!r} has a resource of {entry.key!r}"
                    )
                in_use = thread.phase == "using"
                if in_use and thread.entry in worker.shelf + worker.side:
                    raise Violation(f"#{thread.entry} is in use and on the shelf at once")
                if in_use and (entry is None or entry.state == "closing"):
                    raise Violation(f"#{thread.entry} is in use and was closed")

    def _check_time(self) -> None:
        """Everything that was due is done, and the next deadline lies ahead."""
        due = self.server.books.next_deadline(self.now)
        if due is not None and due <= self.now:
            raise Violation(f"BUSY: a tick at {self.now} wants another one at {due}")
        for pool in self.server.books.pools.values():
            late = [w.ticket for w in pool.waiting if w.deadline <= self.now]
            if late:
                raise Violation(f"LATE: tickets {late} still wait after their deadlines")

    def check_quiet(self) -> None:
        """What must hold when every message has arrived and nobody is in the middle of anything."""
        if not self.server.alive or POOL not in self.server.books.pools:
            return
        pool = self.server.books.pools[POOL]
        held = {number for worker in self.living() for number in worker.table}
        stopped = {worker.process for worker in self.living() if worker.stopped}
        lost = [s.number for s in pool.slots if s.number not in held and s.process not in stopped]
        if lost:
            raise Violation(f"LEAK: the books count {lost}, which nobody holds")
        unknown = [
            number
            for worker in self.living()
            for number in worker.table
            if pool.slots.get(number) is None and not worker.stopped
        ]
        if unknown:
            raise Violation(f"UNKNOWN to the books: {unknown}")
        for worker in self.living():
            if worker.stopped or not worker.attached:
                continue
            if worker.contended != (worker.process in pool.reclaimer.asked):
                raise Violation(f"LOST WAKE-UP: {self.name(worker.process)} was told nothing of it")
            unheard = [n for n in worker.shelf if not worker.table[n].spared]
            if worker.contended and unheard:
                raise Violation(f"LOST WAKE-UP: {unheard} idle where it is known that others wait")
            if worker.side:
                raise Violation(f"LOST: {worker.side} were brought back and never answered")
            local = [t for t in worker.threads if t.phase == "queued"]
            for thread in local:
                if (worker.process, thread.ticket) not in pool.waiting.by_name:
                    raise Violation(
                        f"FORGOTTEN: ticket {thread.ticket} waits, the books don't know it"
                    )
                if any(worker.table[n].key == thread.key for n in worker.shelf):
                    raise Violation("LOST WAKE-UP: a thread waits beside an idle resource")

    def _whose(self, channel: Channel) -> str:
        name = self.name(channel.process)
        return f"{name}'s errands" if channel.thread is None else f"{name}{channel.thread}'s call"


def word(message: Any) -> str:
    """A message in a trace: what it is, and about which grant or ticket."""
    name = type(message).__name__
    number = getattr(message, "number", None)
    if number is not None:
        return f"{name} #{number >> 32}.{number & 0xFFFF}"
    ticket = getattr(message, "ticket", None)
    return (
        f"{name} (ticket {ticket})"
        if ticket is not None
        else str(message)
        if name == "str"
        else name
    )


def check_tables(books: Books) -> None:
    """What is derived equals what it is derived from."""
    for pool in books.pools.values():
        fresh = SlotTable()
        for slot in list(pool.slots):
            fresh.add(slot)
            if pool.slots._expected.get(slot.number) is slot and slot.promised_to is not None:
                fresh._promised_to[slot.promised_to] += 1
        for name, value in vars(fresh).items():
            mine = getattr(pool.slots, name)
            if isinstance(value, (int, Counter)) and mine != value:
                raise Violation(f"slots.{name} is {mine}, recounted {value}")
        if any(slot.state is SlotState.FREE for slot in pool.slots):
            raise Violation("a free slot is kept")


def holder_of(world: World, number: GrantNumber) -> Worker | None:
    """The living process that has this resource."""
    return next((w for w in world.living() if number in w.table), None)

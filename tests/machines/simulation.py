"""Machines and a database in simulated time, over the real script in a real Redis.

The time is an argument of all of them, so that hours pass in seconds. Each machine has a clock of its own pace. Calls
and answers take time, get lost, come twice and late. Redis is flushed, restarted, and fails over to a copy that lacks
the last writes, with another clock. The database counts its sessions at every change: there are never more than the cap.

A story of a world is a generator. It yields what Redis shall do and is sent the replies, so that `drive` has many
worlds ask in one message: one by one, nearly all the time would go into waiting for Redis.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from mppool.machines.machine import Machine
from mppool.machines.needs import Need, Peaks, Said, Told
from mppool.machines.script import SCRIPT
from mppool.machines.timing import Timing

POOL = "orders"
LOGIN, CLOSE = 0.1, 0.22
"""Of a lease: so long logging in and closing take at most. With clocks as wrong as they may be this is just soon enough."""
AT_ONCE = 256
"""So many worlds share a message to Redis."""

Command = tuple[Any, ...]
T = TypeVar("T")
Story = Generator[list[Command], list[Any], T]

_SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
_serials = itertools.count()


class OverTheCap(AssertionError):
    """More sessions than the cap allows."""


def drive(client: Any, stories: Iterable[Story[T]]) -> Iterator[T]:
    """Tell the stories, many at a time, and yield what each returns, in the order in which they end."""
    client.script_load(SCRIPT)
    waiting = iter(stories)
    told: list[tuple[Story[T], list[Command]]] = []
    replies: list[list[Any]] = []
    while True:
        pairs: list[tuple[Story[T], list[Any] | None]] = [
            (story, reply) for (story, _), reply in zip(told, replies, strict=True)
        ]
        pairs += [(story, None) for story in itertools.islice(waiting, AT_ONCE - len(pairs))]
        told = []
        for story, reply in pairs:
            try:
                told.append((story, next(story) if reply is None else story.send(reply)))
            except StopIteration as end:
                yield end.value
        if not pairs:
            return
        replies = _asked(client, [commands for _, commands in told])


def _asked(client: Any, requests: list[list[Command]]) -> list[list[Any]]:
    """All in one message. Errors are replies."""
    pipeline = client.pipeline(transaction=False)
    for commands in requests:
        for command in commands:
            pipeline.execute_command(*command)
    replies = iter(pipeline.execute(raise_on_error=False))
    return [list(itertools.islice(replies, len(commands))) for commands in requests]


class World:
    """True time, what happens in it, Redis and the database.

    loss: the chance that a message is lost, late or comes twice. lent_s: a lease lasts so long at most.
    """

    def __init__(self, cap: int, seed: int, *, lent_s: float | None = None) -> None:
        self.random = random.Random(seed)
        self.timing = Timing()
        self.cap, self.seed = cap, seed
        self.lent_s = self.timing.lease_s * 1.5 if lent_s is None else lent_s
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], Story[None] | None]]] = []
        self._serial = 0
        self.key = f"mppool:{{simulation-{seed}-{next(_serials)}}}:machines"
        self.instance = 0
        # What a copy of Redis knows that lags behind by so many writes.
        self.copies: deque[bytes | None] = deque(maxlen=16)
        self.machines: list[SimulatedMachine] = []
        self.loss = 0.0
        self.calls = self.peak = 0
        self._another_redis()

    def _another_redis(self) -> None:
        """It has a clock of its own, wherever that stands."""
        self.instance += 1
        self.pace_of_redis = self.pace()
        self._offset = self.random.uniform(1000, 2000) - self.now * self.pace_of_redis

    def pace(self) -> float:
        """Of a clock; often it is as wrong as it may be."""
        return self.random.choice([0.9, 0.9, 1.1, 1.1, self.random.uniform(0.9, 1.1)])

    def at(self, seconds: float, what: Callable[[], Story[None] | None]) -> None:
        """Have it happen in so many seconds of true time."""
        self._serial += 1
        heapq.heappush(self._events, (self.now + seconds, self._serial, what))

    def run(self, seconds: float) -> Story[None]:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            rest = what()
            if rest is not None:
                yield from rest
        self.now = until

    # --- Redis -------------------------------------------------------------------------------------------

    def call(self, machine: SimulatedMachine, said: Said) -> None:
        """A call is on its way. Lost: it fails at its sender after a while, carried out or not."""
        chance = self.random.random
        self.at(
            self.timing.answer_s,
            machine.alive_only(
                lambda: machine.machine.failed(said.number, "no answer", machine.clock())
            ),
        )
        if chance() < self.loss or machine.is_cut_off:
            return
        delay = chance() ** 4 * self.timing.answer_s * (4 if chance() < self.loss else 0.5)
        packed, instance = msgspec.json.encode(said), self.instance
        self.at(delay, lambda: self._carry_out(machine, said, packed, instance))
        if chance() < self.loss:
            again = delay + chance() ** 2 * self.timing.lease_s
            self.at(again, lambda: self._carry_out(machine, said, packed, instance))

    def _carry_out(
        self, machine: SimulatedMachine, said: Said, packed: bytes, instance: int
    ) -> Story[None]:
        if instance != self.instance:
            return  # its connection has ended with that Redis
        self.calls += 1
        now = round((self._offset + self.now * self.pace_of_redis) * 1000)
        script: Command = ("EVALSHA", _SHA, 1, self.key, packed, now, str(instance))
        answer, copy = yield [script, ("DUMP", self.key)]
        if isinstance(answer, Exception):
            assert str(answer).startswith("MPPOOL a later call"), answer
            return
        self.copies.append(copy)
        told = msgspec.json.decode(answer, type=Told)
        chance = self.random.random
        if chance() < self.loss or machine.is_cut_off:
            return
        delay = self.timing.answer_s * self.random.choice((0.01, 0.1, 0.9 * chance()))
        heard = machine.alive_only(
            lambda: machine.machine.answered(said.number, told, machine.clock())
        )
        self.at(delay, heard)
        if chance() < self.loss:  # it comes twice, or later than its sender believed
            self.at(chance() * self.timing.lease_s * 0.5, heard)

    def flush(self) -> Story[None]:
        yield [("DEL", self.key)]

    def fail_over(self, forgotten: int = 0) -> Story[None]:
        """Another Redis answers, with the same state, or with that of so many writes ago."""
        self._another_redis()
        if forgotten and self.copies:
            state = self.copies[-min(forgotten + 1, len(self.copies))]
            commands: list[Command] = [("DEL", self.key)]
            if state is not None:
                commands.append(("RESTORE", self.key, 0, state))
            yield commands
        self.copies.clear()

    # --- the database ------------------------------------------------------------------------------------

    def count(self) -> None:
        held = sum([machine.sessions() for machine in self.machines])
        if held > self.peak:
            self.peak = held
            if held > self.cap:
                each = [(one.name, one.sessions()) for one in self.machines]
                raise OverTheCap(
                    f"seed {self.seed}: {held} of {self.cap} at {self.now:.2f} s: {each}"
                )


class SimulatedMachine:
    """A server and its processes. demand: how many resources are used, if they are to be had.

    held: sessions at the database: they are lent, return some time, or end soon. opening: such as will be.
    """

    def __init__(self, world: World, name: str, *, pace: float) -> None:
        self.world, self.pace = world, pace
        self.demand = 0
        # How much was used, and since when by this machine's clock.
        self._demands: deque[tuple[float, int]] = deque([(0.0, 0)])
        self.opening = self._number = 0
        self.held: dict[int, str] = {}
        self.incarnation = self.epoch = 0
        self.alive = True
        self.is_cut_off = False
        self.name = name
        world.machines.append(self)
        self._begin(None)

    def _begin(self, since: float | None) -> None:
        self.epoch += 1
        chance = self.world.random
        self.machine = Machine(
            self.name,
            self.name,
            self.epoch,
            self.world.timing,
            None,
            now=self.clock(),
            since=since,
            jitter=chance.random,
            fresh=lambda: f"{chance.getrandbits(64):x}",
        )
        self._peaks = Peaks()
        self.incarnation += 1
        self._planned = float("inf")
        self.look()

    def clock(self) -> float:
        return self.world.now * self.pace

    def alive_only(self, what: Callable[[], None]) -> Callable[[], None]:
        """As `what`, if this server lives by then."""
        incarnation = self.incarnation

        def guarded() -> None:
            if self.alive and incarnation == self.incarnation:
                what()
                self.look()

        return guarded

    def wants(self, demand: int) -> None:
        self.demand = demand
        self._demands.append((self.clock(), demand))
        if self.alive:
            self.look()

    def sessions(self) -> int:
        """As the database counts them."""
        return len(self.held)

    # --- what the server and its processes do ------------------------------------------------------------

    def has(self) -> int:
        return len(self.held) + self.opening

    def _wants(self, now: float) -> int:
        """As a server finds out: what was in use when it asked last, a moment ago, or lately before that; and who waits."""
        timing, has = self.world.timing, self.has()
        contended = self.machine.is_contended(POOL)
        since = now - timing.hurry_s / 2 - (timing.lately_s if contended else timing.refresh_s)
        demands = self._demands
        while len(demands) > 1 and demands[1][0] <= since:
            demands.popleft()
        used = min(max([demand for _, demand in demands]), has)
        self._peaks.begin()
        wants = used + max(0, self.demand - has)
        return min(self._peaks.note(POOL, wants, contended=contended), self.world.cap)

    def _need(self, size: int | None) -> Need:
        has = self.has()
        starves = size is not None and has >= size and self.demand > has
        return Need(self.world.cap, 0, has, starves)

    def look(self) -> None:
        """What is due, and what follows from this machine's part."""
        world, machine, now = self.world, self.machine, self.clock()
        part = machine.part(POOL, now)
        needs = {POOL: self._need(part.size)}
        if machine.is_due(now, needs):
            wants = self._wants(now)
            needs = {POOL: needs[POOL]._replace(wants=wants)}
            world.call(self, machine.call(now, needs, 1))
            part = machine.part(POOL, now)
        chance = world.random.random
        size = world.cap if part.size is None else part.size
        if part.opens:
            while self.has() < min(self.demand, size):
                self.opening += 1
                world.at(
                    chance() ** 3 * LOGIN * world.timing.lease_s, self.alive_only(self._opened)
                )
        if len(self.held) > size:
            self._close(len(self.held) - size, ends=part.ends)
        self._plan(now)

    def _plan(self, now: float) -> None:
        machine = self.machine
        needs = {POOL: self._need(machine.part(POOL, now).size)}
        at = min(machine.due_at(needs), machine.next_phase(now))
        if at != self._planned:
            self._planned = at
            if at != float("inf"):
                seconds = max(0.0, at - now) / self.pace + 0.001
                self.world.at(seconds, functools.partial(self._as_planned, self.incarnation, at))

    def _as_planned(self, incarnation: int, at: float) -> None:
        if self.alive and incarnation == self.incarnation and at == self._planned:
            self._planned = float("inf")
            self.look()

    def _opened(self) -> None:
        self.opening -= 1
        self._holds_one_more()
        self.world.count()

    def _holds_one_more(self) -> None:
        self._number += 1
        self.held[self._number] = "lent"

    def _close(self, count: int, *, ends: bool) -> None:
        """So many are to go. What is lent comes back some time; what is ended is closed soon, often just in time."""
        lease_s = self.world.timing.lease_s
        at_most, state = (CLOSE * lease_s, "ends") if ends else (self.world.lent_s, "returns")
        count -= sum(one == "ends" or one == state for one in self.held.values())
        for number in [number for number, one in self.held.items() if one not in ("ends", state)]:
            if count <= 0:
                return
            count -= 1
            self.held[number] = state
            seconds = at_most * self.world.random.choice((1.0, self.world.random.random()))
            self.world.at(seconds, functools.partial(self._closed, number))

    def _closed(self, number: int) -> None:
        """Processes go on closing while their server is dead."""
        if self.held.pop(number, None) is not None and self.alive:
            self.look()

    # --- what happens to it ------------------------------------------------------------------------------

    def dies(self) -> None:
        """The whole machine: the database ends its sessions."""
        self.alive = False
        self.held.clear()
        self.opening = 0

    def returns(self) -> None:
        self.alive = True
        self._begin(None)

    def restarts_server(self, *, forgets: bool = False) -> None:
        """The server dies, and a successor takes over with the file that the first has left, or without it."""
        since = self.machine.since
        if forgets:
            since, self.name = None, f"{self.name}'"
        for _ in range(self.opening):  # what was being opened is held
            self._holds_one_more()
        self.opening = 0
        self.world.count()
        self._begin(since)

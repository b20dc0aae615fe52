"""Machines and a database in simulated time, over the real script in a real Redis.

The time is an argument of all of them, so that hours pass in seconds. Each machine has a clock of its own pace. Calls
and answers take time, get lost, come twice and late. Redis is flushed, restarted, and fails over to a copy that lacks
the last writes. The database counts its sessions at every change: there are never more than the cap.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from mppool.machines.machine import Machine
from mppool.machines.needs import Need, Said, Told
from mppool.machines.script import SCRIPT
from mppool.machines.timing import Timing

POOL = "orders"


class OverTheCap(AssertionError):
    """More sessions than the cap allows."""


class World:
    """True time, what happens in it, Redis and the database."""

    def __init__(self, client: Any, cap: int, seed: int, *, fifo: bool = False) -> None:
        self.random = random.Random(seed)
        self.timing = Timing()
        self.cap = cap
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self.client = client
        self.script = client.register_script(SCRIPT)
        self.key = f"mppool:{{simulation-{seed}}}:machines"
        client.delete(self.key)
        self.instance = 1
        self.pace_of_redis = self.random.uniform(0.95, 1.1)
        # What a copy of Redis knows that lags behind by so many writes.
        self.copies: deque[dict[bytes, bytes]] = deque(maxlen=12)
        self.machines: list[SimulatedMachine] = []
        self.loss = 0.0
        self.calls = 0
        self.peak = 0

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Have it happen in so many seconds of true time."""
        self._serial += 1
        heapq.heappush(self._events, (self.now + seconds, self._serial, what))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    # --- Redis -------------------------------------------------------------------------------------------

    def call(self, machine: SimulatedMachine, said: Said) -> None:
        """A call is on its way. Lost: it fails at its sender after a while, carried out or not."""
        chance = self.random.random
        failed = machine.alive_only(
            lambda: machine.machine.failed(said.number, "no answer", machine.clock())
        )
        self.at(self.timing.answer_s, failed)
        if chance() < self.loss:
            return
        delay = chance() ** 4 * self.timing.answer_s * (4 if chance() < self.loss else 0.5)
        instance = self.instance
        self.at(delay, lambda: self._carry_out(machine, said, instance))
        if chance() < self.loss:
            self.at(delay + chance(), lambda: self._carry_out(machine, said, instance))

    def _carry_out(self, machine: SimulatedMachine, said: Said, instance: int) -> None:
        if instance != self.instance:
            return  # its connection has ended with that Redis
        import redis

        self.calls += 1
        now = round((1000 + self.now * self.pace_of_redis) * 1000)
        try:
            answer = self.script(
                keys=[self.key], args=[msgspec.json.encode(said), now, str(instance)]
            )
        except redis.ResponseError:
            return  # an older call
        self.copies.append(self.client.hgetall(self.key))
        told = msgspec.json.decode(answer, type=Told)
        if self.random.random() < self.loss:
            return
        delay = self.random.random() ** 4 * self.timing.answer_s * 0.4
        heard = machine.alive_only(lambda: machine.hears(said.number, told))
        self.at(delay, heard)

    def flush(self) -> None:
        self.client.delete(self.key)

    def fail_over(self, forgotten: int = 0) -> None:
        """Another Redis answers, with the same state, or with that of so many writes ago."""
        self.instance += 1
        if forgotten and self.copies:
            state = self.copies[-min(forgotten + 1, len(self.copies))]
            self.client.delete(self.key)
            if state:
                self.client.hset(self.key, mapping=state)
        self.copies.clear()

    # --- the database ------------------------------------------------------------------------------------

    def count(self) -> None:
        held = sum(machine.open for machine in self.machines)
        self.peak = max(self.peak, held)
        if held > self.cap:
            each = [(one.machine.name, one.open) for one in self.machines]
            raise OverTheCap(f"{held} of {self.cap} at {self.now:.2f} s: {each}")


class SimulatedMachine:
    """A server and its processes. demand: how many resources are used, if they are to be had.

    open: sessions at the database. opening: such as will be. lent: in use, so that only a release ends them.
    """

    def __init__(
        self, world: World, name: str, *, pace: float, fallback: int | None = None
    ) -> None:
        self.world = world
        self.pace = pace
        self.demand = 0
        self.open = self.opening = self.closing = 0
        self.incarnation = 0
        self.alive = True
        self.name, self.fallback = name, fallback
        self.epoch = 0
        self._begin(None)
        world.machines.append(self)

    def _begin(self, since: float | None) -> None:
        self.epoch += 1
        chance = self.world.random
        self.machine = Machine(
            self.name,
            self.name,
            self.epoch,
            self.world.timing,
            self.fallback,
            now=self.clock(),
            since=since,
            jitter=chance.random,
            fresh=lambda: f"{chance.getrandbits(64):x}",
        )
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

    def hears(self, number: int, told: Told) -> None:
        self.machine.answered(number, told, self.clock())

    def wants(self, demand: int) -> None:
        self.demand = demand
        if self.alive:
            self.look()

    # --- what the server and its processes do ------------------------------------------------------------

    def has(self) -> int:
        return self.open + self.opening

    def _need(self) -> Need:
        part = self.machine.part(POOL, self.clock())
        starves = self.demand > self.has() and part.size is not None and self.has() >= part.size
        return Need(self.world.cap, min(self.demand, self.world.cap), self.has(), starves)

    def look(self) -> None:
        """What is due, and what follows from this machine's part."""
        now = self.clock()
        needs = {POOL: self._need()}
        if self.machine.is_due(now, needs):
            self.world.call(self, self.machine.call(now, needs, 1))
        part = self.machine.part(POOL, now)
        chance = self.world.random.random
        size = self.world.cap if part.size is None else part.size
        if part.opens:
            while self.has() < min(self.demand, size):
                self.opening += 1
                self.world.at(chance() * 0.5, self.alive_only(self._opened))
        elif part.ends or self.open - self.closing > size:
            pass
        beyond = max(0, self.open - self.closing - size)
        for _ in range(beyond):
            self.closing += 1
            # What is lent comes back some time; what is ended is closed soon.
            at_most = self.world.timing.lease_s * (0.1 if part.ends else 1.5)
            self.world.at(chance() * at_most, self._closed_of(self.incarnation))
        self._plan()

    def _plan(self) -> None:
        machine = self.machine
        now = self.clock()
        at = min(machine.due_at({POOL: self._need()}), machine.next_phase(now))
        if at != float("inf") and at < self._planned:
            self._planned = at

            def due() -> None:
                self._planned = float("inf")

            self.world.at(max(0.0, at - now) / self.pace + 0.001, self.alive_only(due))

    def _opened(self) -> None:
        self.opening -= 1
        self.open += 1
        self.world.count()

    def _closed_of(self, incarnation: int) -> Callable[[], None]:
        def closed() -> None:
            if incarnation == self.incarnation and self.alive:
                self.open -= 1
                self.closing -= 1
                self.look()

        return closed

    # --- what happens to it ------------------------------------------------------------------------------

    def dies(self) -> None:
        """The whole machine: the database ends its sessions."""
        self.alive = False
        self.open = self.opening = self.closing = 0

    def returns(self) -> None:
        self.alive = True
        self._begin(None)

    def restarts_server(self) -> None:
        """The server dies, and a successor takes over with the file that the first has left."""
        since = self.machine.since
        self.open += self.opening  # what was being opened is held
        self.opening = self.closing = 0
        self.world.count()
        self._begin(since)

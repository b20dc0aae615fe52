"""Whole machines in simulated time: the real books, the real `Leasing` of a server, and the real script in a real Redis.

Only what needs an operating system is played: the processes (`tests/core/model/house.py`), their reports, the thread
that calls Redis, and the clocks. Time goes in small steps.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec

from mppool.core.decisions import EndLeases
from mppool.ids import ProcessId
from mppool.machines.calling import key_of
from mppool.machines.needs import Said, Told
from mppool.machines.script import SCRIPT
from mppool.machines.settings import Settings
from mppool.options import PoolOptions
from mppool.rendezvous.paths import manager_paths
from mppool.server import leasing
from mppool.server.leasing import Leasing
from tests.core.model.house import House, Thing

STEP_S = 0.05
LEASE_S = 15.0
REFRESH_S = LEASE_S / 5


class _Rooms(House):
    """Processes that end leases when they are told to."""

    def _carry_out(self, decisions: list[tuple[ProcessId | None, Any]]) -> None:
        decisions = list(decisions)
        super()._carry_out(decisions)
        for process, decision in decisions:
            if isinstance(decision, EndLeases):
                theirs = [
                    thing
                    for thing in self.things.values()
                    if (thing.process, thing.pool) == (process, decision.pool)
                    and thing.state in ("used", "idle")
                ]
                for thing in theirs[: decision.count]:
                    thing.state = "closing"

    def check(self) -> None:
        """The cap is that of all machines: `Street` looks at it."""


class FurnishedMachine:
    """One machine. load: how many resources of each pool are to be in use."""

    def __init__(
        self, street: Street, name: str, pools: dict[str, PoolOptions], cap: int, lent_s: float
    ) -> None:
        self.street, self.name, self.lent_s = street, name, lent_s
        self.load: Counter[str] = Counter()
        self.house = _Rooms(cap, pools, processes=1)
        self.alive = True
        self._idle: dict[str, list[float]] = {}
        self._waiting: Counter[str] = Counter()
        self._said: list[Said] = []
        directory = street.directory / name
        directory.mkdir(0o700)
        self.leasing = street.leasing_at(directory, self)
        self.leasing.serve(self.house.books, cast(Any, self), cast(Any, [None]), cast(Any, self))

    # --- in place of the collector, of the delivery and of the caller's thread ---------------------------

    def ask_briefly(self) -> None:
        now = self.house.now
        self._idle = {pool: [] for pool in self.house.pools}
        for thing in self.house.things.values():
            if thing.state == "idle":
                self._idle[thing.pool].append(now - thing.since)
        self._waiting = Counter(pool for pool, _, _ in self.house.waiting.values())

    def idle_for(self, pool: str, seconds: float) -> int:
        return sum(one >= seconds for one in self._idle.get(pool, ()))

    def waiting(self, pool: str) -> int:
        return self._waiting[pool]

    def carry_out(self, decisions: Any, now: float) -> None:
        self.house._carry_out(decisions)
        while self.house.todo:
            self.house.do(*self.house.todo.popleft())

    def submit(self, said: Said) -> None:
        self._said.append(said)

    # --- time ----------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        for said in self._said:
            self.leasing._answered(said.number, self.street.ask(said), "")
        self._said.clear()
        self.house.wait(now - self.house.now)
        self.leasing.tick(now)
        for thing in list(self.house.things.values()):
            self._go_on(thing)
        (process,) = self.house.living
        for pool in self.house.pools:
            used = sum(
                one.pool == pool and one.state == "used" for one in self.house.things.values()
            )
            waits = [name for name, one in self.house.waiting.items() if one[0] == pool]
            for _ in range(self.load[pool] - used - len(waits)):
                self.house.want(process, pool)
            for name in waits[: max(0, used + len(waits) - self.load[pool])]:
                self.house.gives_up(name)

    def _go_on(self, thing: Thing) -> None:
        if thing.number not in self.house.things:
            return
        if thing.state == "opening":
            if self.house.now - thing.began >= self.house.opening_s:
                self.house.opens(thing)
        elif thing.state == "closing":
            self.house.closes(thing)
        elif thing.state == "used" and self.house.now - thing.since >= self.lent_s:
            self.house.release(thing)

    def held(self, pool: str | None = None) -> int:
        return self.house.held(pool)


class Street:
    """The machines, their Redis and the true time."""

    def __init__(self, client: Any, directory: Path, monkeypatch: Any, cap: int) -> None:
        self.directory, self.cap = directory, cap
        self.now = 1000.0
        self.machines: list[FurnishedMachine] = []
        self._script = client.register_script(SCRIPT)
        self._key = key_of(directory.name)
        client.delete(self._key)
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(leasing, "clock", lambda: self.now)

    def leasing_at(self, directory: Path, machine: FurnishedMachine) -> Leasing:
        self._monkeypatch.setattr(leasing, "Caller", lambda *_: machine)
        settings = Settings("redis://here", None, LEASE_S)
        return Leasing(settings, manager_paths("shop", directory), 1, lambda: None)

    def add(
        self, name: str, pools: dict[str, PoolOptions], *, lent_s: float = 0.2
    ) -> FurnishedMachine:
        machine = FurnishedMachine(self, name, pools, self.cap, lent_s)
        machine.house.now = self.now
        self.machines.append(machine)
        return machine

    def ask(self, said: Said) -> Told:
        arguments = [msgspec.json.encode(said), round(self.now * 1000), "one"]
        return msgspec.json.decode(self._script(keys=[self._key], args=arguments), type=Told)

    def run(self, seconds: float) -> None:
        """Time passes; the cap holds at every instant."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            for machine in self.machines:
                if machine.alive:
                    machine.step(self.now)
            held = [machine.held() for machine in self.machines if machine.alive]
            assert sum(held) <= self.cap, f"OVER the cap at {self.now}: {held}"

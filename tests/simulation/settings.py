"""What a seed draws: how large a world is, how it behaves, which faults there are, and when."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FAULTS = {
    "kill worker": 1.0,
    "kill server": 0.6,
    "stop worker": 0.7,
    "stop server": 0.3,
    "cut": 1.0,
    "descriptors": 0.4,
    "disk full": 0.2,
    "journal fails": 0.2,
    "tear journal": 0.2,
    "logins fail": 0.5,
    "logins hang": 0.3,
    "backend gone": 0.3,
    "leave": 0.5,
    "shutdown": 0.2,
    "reset": 0.3,
    "resize": 0.3,
    "fork": 0.4,
    "exec": 0.3,
    "visitor": 0.2,
    "redeploy": 0.3,
}
"""The kinds, and how often each is drawn beside the others."""

MORE = ("freeze", "suspend", "issuer fails", "issuer hangs", "tokens revoked")
"""Kinds with numbers of their own, so that worlds without them stay what they are. All but the first two need tokens."""

LATER = ("hooks fail", "clock steps", "ask", "drain", "close")
"""Kinds that were added last."""

ALL = {**FAULTS, **dict.fromkeys((*MORE, *LATER), 0.2)}
"""Beside each other, where a seed draws its pace."""

SECONDS = 60.0
"""Of faults, in a world without a pace of its own."""


class Fault(NamedTuple):
    """Something goes wrong. a, b: two numbers between 0 and 1, which say with whom and how."""

    at: float
    kind: str
    a: float
    b: float

    def __str__(self) -> str:
        return f"{self.at:.3f} s {self.kind} ({self.a:.3f}, {self.b:.3f})"


@dataclass
class Settings:
    """One world. Times are seconds.

    patience: points between two choices of a thread. statements: there is a point before each statement. two_members: each
        process has two copies of the library.
    tasks: "apool": all processes use an AsyncPool; "acheckout": about half of them have tasks that use a Pool. loops: of such a
        process at one time. loop_life: of each, on average. cancelled: how likely a task is. rough: how likely a loop is
        closed without a word. more_hooks: its recipe also has on_checkout and reset; all_hooks: those of the others too.
    detached, overdue: how likely a lease is detached, or held for longer than max_lease_kill.
    tokens: a login is done with one. issuer: how long it takes to give one; token_life: how long it is good.
    async_credentials: coroutines ask for it, where processes use an AsyncPool.
    hold, pause: of a lease, between two checkouts, on average. quiet: how likely a pause is a hundred times as long.
    established: without what was added last.
    pace: "quiet": hours in which little happens; "hostile": faults without a pause; else something between.
    """

    seed: int
    seconds: float = 60.0
    processes: int = 3
    threads: int = 2
    options: dict[str, Any] = field(default_factory=lambda: {"max_size": 3})
    timeouts: tuple[float | None, ...] = (5.0,)
    identities: tuple[str | None, ...] = (None,)
    hold: float = 0.05
    pause: float = 0.2
    quiet: float = 0.02
    login: float = 0.02
    close: float = 0.002
    check: float = 0.001
    linger: float = 5.0
    longest_start: float = 0.2
    patience: float = 20.0
    statements: bool = False
    delayed: float = 0.0
    longest_delay: float = 0.0
    room: int = 200_000
    cpus: int = 1
    knows_peerpidfd: bool = True
    most_pids: int = 1 << 22
    kinds: tuple[str, ...] = ()
    two_members: bool = False
    tasks: str = ""
    loops: int = 1
    loop_life: float = math.inf
    cancelled: float = 0.1
    rough: float = 0.0
    more_hooks: bool = False
    all_hooks: bool = False
    detached: float = 0.0
    overdue: float = 0.0
    tokens: bool = False
    issuer: float = 0.05
    token_life: float = 20.0
    async_credentials: bool = False
    pace: str = ""
    established: bool = False

    def may_be_logged(self, text: str) -> bool:
        """Whether such a line of level ERROR says what this world has done."""
        full = {"disk full", "journal fails", "descriptors"} & set(self.kinds)
        return bool(full) and any(
            part in text
            for part in (
                "cannot be put on file",
                "cannot be watched",
                "journal",
                "No space",
                "failed; serving on",
                "serving it failed",
            )
        )


def drawn(
    seed: int, seconds: float | None = None, *, established: bool = False
) -> tuple[Settings, list[Fault]]:
    """The world and the history of a seed.

    seconds: of its faults; None: as long, and at such a pace, as the seed draws. established: without what was added last.
    """
    settings, history = _drawn(seed, SECONDS if seconds is None else seconds)
    settings.established = established
    if seconds is None:
        history = _draw_pace(settings, history)
    return settings, sorted(fault for fault in history if fault.kind in settings.kinds)


def _drawn(seed: int, seconds: float) -> tuple[Settings, list[Fault]]:
    chance = random.Random(f"settings {seed}")
    size = chance.choice((1, 2, 3, 4, 6, 8))
    options: dict[str, Any] = {"max_size": size}
    if chance.random() < 0.3:
        options["min_size"] = chance.randint(1, size)
    if chance.random() < 0.3:
        options["max_idle"] = chance.choice((0.5, 5.0))
    if chance.random() < 0.3:
        options["max_lifetime"] = chance.choice((1.0, 10.0))
    if chance.random() < 0.3:
        options["max_opening"] = chance.randint(1, size)
    if chance.random() < 0.2:
        options["max_per_process"] = chance.randint(1, size)
    if chance.random() < 0.2:
        options["max_waiting"] = chance.choice((1, 5))
    if chance.random() < 0.3:
        options["max_uses"] = chance.choice((1, 3, 20))
    if "min_size" not in options and chance.random() < 0.2:
        options["keep"] = False
    if chance.random() < 0.2:
        options["check_interval"] = 1.0
    options["order"] = chance.choice(("lifo", "fifo"))
    options["fail_fast"] = chance.random() < 0.7
    kinds = tuple(kind for kind, weight in FAULTS.items() if chance.random() < 0.25 + weight / 4)
    processes, threads = chance.choice((1, 2, 2, 3, 3, 4, 5, 8)), chance.choice((1, 1, 2, 2, 3, 4))
    settings = Settings(
        seed,
        seconds,
        processes=processes,
        threads=threads,
        options=options,
        timeouts=chance.choice(
            ((5.0,), (0.0,), (0.05, 1.0), (0.0, 0.2, 5.0, None), (30.0,), (None,))
        ),
        identities=chance.choice(((None,), (None,), (None,), ("anna", "bert"), (None, "anna"))),
        hold=chance.choice((0.0, 0.01, 0.05, 0.5)),
        pause=processes * threads / chance.choice((1.0, 5.0, 20.0)),
        quiet=chance.choice((0.0, 0.02, 0.1)),
        login=chance.choice((0.0, 0.005, 0.05, 0.3, 1.0)),
        close=chance.choice((0.0, 0.001, 0.1)),
        check=chance.choice((0.0, 0.002, 0.1)),
        linger=chance.choice((0.0, 1.0, 30.0)),
        longest_start=chance.choice((0.02, 0.2, 0.5)),
        patience=chance.choice((3.0, 10.0, 50.0, 300.0)),
        statements=chance.random() < 0.3,
        delayed=chance.choice((0.0, 0.0, 0.1, 0.5)),
        longest_delay=chance.choice((0.001, 0.02)),
        room=chance.choice((200_000, 200_000, 2000, 700)),
        cpus=chance.choice((1, 1, 1, 2)),
        knows_peerpidfd=chance.random() < 0.7,
        most_pids=chance.choice((1 << 22, 112)),
        kinds=kinds,
    )
    settings.two_members = chance.random() < 0.2
    history = _history(chance, settings)
    _draw_tasks(settings)
    history += _draw_more(settings)
    if settings.tasks == "apool":  # a visitor has threads
        settings.kinds = tuple(kind for kind in settings.kinds if kind != "visitor")
    return settings, history


def _draw_pace(settings: Settings, history: list[Fault]) -> list[Fault]:
    """In some worlds an hour costs little, in others a fault does; the rest has a minute of everything."""
    chance = random.Random(f"pace {settings.seed}")
    settings.pace = chance.choices(("", "hostile", "quiet"), (0.24, 0.6, 0.16))[0]
    if not settings.pace:
        return history
    if not settings.established:
        _draw_later(settings)
    if settings.pace == "quiet":
        _draw_quiet(settings, chance)
        every_s = chance.choice((10.0, 60.0, 300.0))
    else:
        settings.seconds = chance.choice((20.0, 60.0))
        every_s = 1 / chance.choice((10.0, 20.0, 40.0))
        if chance.random() < 0.1:
            _draw_crowd(settings, chance)
    return _faults(chance, settings, [kind for kind in settings.kinds if kind in ALL], every_s)


def _draw_later(settings: Settings) -> None:
    """What was added last."""
    chance = random.Random(f"later {settings.seed}")
    options, size = settings.options, settings.options["max_size"]
    settings.kinds += tuple(kind for kind in LATER if chance.random() < 0.4)
    settings.all_hooks = chance.random() < 0.4
    settings.detached = chance.choice((0.0, 0.0, 0.02, 0.2))
    if chance.random() < 0.2:
        options["lanes"] = {"web": chance.randint(1, size)}
        settings.kinds = tuple(
            kind for kind in settings.kinds if kind not in ("resize", "redeploy")
        )
    if chance.random() < 0.2:
        # Long enough for as many as there may be to be opened one after the other, and held together.
        limit = chance.choice((1.0, 3.0)) * (8.0 + 3.0 * 6 * settings.login)
        options["max_lease_warn"], options["max_lease_kill"] = limit / 2, limit
        settings.overdue = chance.choice((0.0, 0.01, 0.1))
    if chance.random() < 0.1:
        options["wait_warn"] = 0.5


def _draw_quiet(settings: Settings, chance: random.Random) -> None:
    """Where lifetimes, idling, lingering and tokens' ends take as long as with users."""
    options = settings.options
    settings.seconds = chance.choice((1200.0, 2400.0, 3600.0))
    settings.pause = settings.processes * settings.threads * chance.choice((3.0, 30.0))
    settings.hold = chance.choice((0.0, 0.05, 1.0, 5.0))
    settings.linger = chance.choice((1.0, 30.0, 60.0))
    settings.loop_life = chance.choice((math.inf, math.inf, 600.0))
    settings.token_life = chance.choice((400.0, 3600.0))
    settings.statements = False
    for name, values in (("max_idle", (30.0, 600.0)), ("max_lifetime", (60.0, 1800.0))):
        if name in options or chance.random() < 0.3:
            options[name] = chance.choice(values)
    if "check_interval" in options:
        options["check_interval"] = chance.choice((10.0, 60.0))


def _draw_crowd(settings: Settings, chance: random.Random) -> None:
    """Many processes, most of which wait for most of the time."""
    before, settings.processes = settings.processes, chance.choice((16, 32, 64))
    settings.pause *= settings.processes / before
    settings.threads, settings.seconds = 1, 20.0
    if settings.most_pids < 1000:
        settings.most_pids = 300


def _faults(
    chance: random.Random, settings: Settings, kinds: list[str], every_s: float
) -> list[Fault]:
    """Of all kinds that this world has; some come more often than others."""
    if not kinds:
        return []
    weights = [ALL[kind] * chance.choice((0.3, 1.0, 3.0)) for kind in kinds]
    found: list[Fault] = []
    at = chance.expovariate(1 / every_s)
    while at < settings.seconds:
        kind = chance.choices(kinds, weights)[0]
        found.append(Fault(at, kind, chance.random(), chance.random()))
        at += chance.expovariate(1 / every_s)
    return found


def _draw_tasks(settings: Settings) -> None:
    """From numbers of its own, so that worlds without tasks stay what they are."""
    chance = random.Random(f"tasks {settings.seed}")
    settings.tasks = chance.choice(("", "", "", "apool", "acheckout"))
    settings.loops = chance.choice((1, 1, 2))
    settings.loop_life = chance.choice((math.inf, math.inf, 10.0, 2.0))
    settings.cancelled = chance.choice((0.0, 0.1, 0.5))
    settings.rough = chance.choice((0.0, 0.0, 0.3, 1.0))
    settings.more_hooks = chance.random() < 0.5


def _draw_more(settings: Settings) -> list[Fault]:
    chance = random.Random(f"more {settings.seed}")
    settings.tokens = chance.random() < 0.25
    settings.issuer = chance.choice((0.0, 0.05, 0.5))
    settings.token_life = chance.choice((3.0, 20.0, 400.0))
    names = chance.choice((("anna",), ("anna", "bert")))
    if settings.tokens:
        settings.identities = names
        asks_in_loop = random.Random(f"credentials {settings.seed}").random() < 0.6
        settings.async_credentials = settings.tasks == "apool" and asks_in_loop
    found = []
    for kind in MORE if settings.tokens else MORE[:2]:
        if not settings.kinds or chance.random() < 0.5:
            continue
        settings.kinds += (kind,)
        at, pause = 0.0, chance.choice((3.0, 10.0, 30.0))
        while (at := at + chance.expovariate(1 / pause)) < settings.seconds:
            found.append(Fault(at, kind, chance.random(), chance.random()))
    return found


def _history(chance: random.Random, settings: Settings) -> list[Fault]:
    if not settings.kinds:
        return []
    rate = chance.choice((0.2, 1.0, 3.0, 10.0))
    return _faults(chance, settings, list(settings.kinds), 1 / rate)

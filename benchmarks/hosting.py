"""Hosts: what a call costs, what rows cost and how they are encoded, and many processes on few connections."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import itertools
import marshal
import os
import pickle
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks.asynchronous import VARIABLE
from benchmarks.command import command
from benchmarks.load import in_processes, private_manager
from benchmarks.measuring import interleaved, pinned
from benchmarks.tables import Table
from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.hosting.rows import packed, unpacked
from mppool.recipe import Opening

DIRECT, HOSTED, WORKER, HOST = "direct", "in a host", 'placement="worker"', 'placement="host"'
ROUND_TRIP = "a round trip over AF_UNIX"
USE = "checkout, execute, fetchone, release"
PROCESSES, CONNECTIONS = 8, 2
PAUSE_S = 0.01
"""Between two uses: what a request does besides asking the database."""
ROWS = 100_000
CURVE = (1, 2, 4, 8, 16)


class SlowLogin(DbApiRecipe):
    """SQLite whose login takes as long as PostgreSQL's in the same machine."""

    login_s = 0.005

    def connect(self, opening: Opening) -> Any:
        time.sleep(self.login_s)
        return super().connect(opening)


class SlowerLogin(SlowLogin):
    """With TLS and a password that is checked, in the same data center."""

    login_s = 0.1


class SlowestLogin(SlowLogin):
    """With a token, or further away."""

    login_s = 0.3


def run(quick: bool) -> Iterator[Table]:
    """Calls, rows, a host alone, crowds, and how rows are encoded."""
    yield from calls(quick)
    yield many_rows(quick)
    yield alone(quick)
    loads = (
        (SlowLogin, 0.0), (SlowLogin, PAUSE_S), (SlowerLogin, PAUSE_S), (SlowestLogin, PAUSE_S),
    )  # fmt: skip
    for recipe, pause_s in loads[::2] if quick else loads:
        yield crowd(quick, recipe, pause_s)
    yield from many(quick)
    yield from encodings(quick)


# --- one process ------------------------------------------------------------------------------------------------


def calls(quick: bool) -> Iterator[Table]:
    """`execute` and `fetchone` of a small result, and what the same bytes take to an echo and back.

    What waking another process takes depends on where it runs: five times as much on another CPU, on some machines. So both are
    measured once with all processes on one CPU, and once wherever the scheduler puts them.
    """
    with pinned():
        yield _calls(quick, "on one CPU")
    yield _calls(quick, "on all CPUs")


def _calls(quick: bool, where: str) -> Table:
    rounds, repetitions = (2, 50) if quick else (15, 400)
    with _host() as manager, _echo() as (there_and_back, echo):
        pool = manager.pool("calls", DbApiRecipe(sqlite3.connect, ":memory:"), placement="host")
        connection = sqlite3.connect(":memory:")
        with pool.checkout(timeout=None) as hosted:
            there, here = hosted.cursor(), connection.cursor()
            host = _pids_of_hosts(pool)[0]
            cpu: dict[str, list[float]] = {ROUND_TRIP: [], HOSTED: []}

            def both_ends(name: str, pid: int, function: Callable[[], Any]) -> float:
                began = _cpu_micros(pid) + time.thread_time() * 1e6
                took = _median_micros(function, repetitions)
                spent = _cpu_micros(pid) + time.thread_time() * 1e6 - began
                cpu[name].append(spent / repetitions)
                return took

            contestants = {
                DIRECT: lambda: _median_micros(
                    lambda: here.execute("select ?", (1,)).fetchone(), repetitions
                ),
                ROUND_TRIP: lambda: both_ends(ROUND_TRIP, echo, there_and_back),
                HOSTED: lambda: both_ends(
                    HOSTED, host, lambda: there.execute("select ?", (1,)).fetchone()
                ),
            }
            samples = interleaved(contestants, rounds)
        samples[USE] = [_median_micros(lambda: _use(pool), repetitions) for _ in range(rounds)]
        connection.close()
    details: dict[str, dict[str, Any]] = {
        name: {"CPU of both ends, us": min(spent)} for name, spent in cpu.items()
    }
    for name in (HOSTED, USE):
        figures = zip(samples[name], samples[DIRECT], samples[ROUND_TRIP], strict=True)
        beyond = median((own - direct) / trip for own, direct, trip in figures)
        details.setdefault(name, {})["round trips beyond direct"] = beyond
    return Table(
        f"hosting_calls_{where.replace(' ', '_')}",
        f"execute and fetchone, one process, {where}",
        "us",
        samples,
        (ROUND_TRIP,),
        details=details,
        aims=[f"{HOSTED}: at most {DIRECT} + 2.5 x {ROUND_TRIP}"],
    )


def many_rows(quick: bool) -> Table:
    """`execute` and `fetchall` of many rows of five columns."""
    rounds, count = (1, 2_000) if quick else (9, ROWS)
    statement = (
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) "
        "select i, i * 0.5, 'name ' || i, i % 7, 'a text of some length' from n"
    )

    def per_second(connection: Any) -> float:
        began = time.perf_counter()
        rows = connection.execute(statement, (count,)).fetchall()
        assert len(rows) == count
        return count / (time.perf_counter() - began)

    with _host() as manager:
        pool = manager.pool("rows", DbApiRecipe(sqlite3.connect, ":memory:"), placement="host")
        connection = sqlite3.connect(":memory:")
        with pool.checkout(timeout=None) as hosted:
            samples = interleaved(
                {DIRECT: lambda: per_second(connection), HOSTED: lambda: per_second(hosted)}, rounds
            )
        connection.close()
    return Table(
        "hosting_rows",
        f"{ROWS:,} rows of 5 columns",
        "rows/s",
        samples,
        (DIRECT,),
        more_is_better=True,
        aims=[f"{HOSTED}: at least 0.5 x {DIRECT}"],
    )


# --- many processes ---------------------------------------------------------------------------------------------


def alone(quick: bool) -> Table:
    """Small statements that one host serves, by the number of processes that each have a lease of it."""
    rounds, seconds = (1, 0.3) if quick else (5, 2.0)

    def contestant(processes: int) -> float:
        with _host() as manager:
            recipe = DbApiRecipe(sqlite3.connect, ":memory:")
            pool = manager.pool("alone", recipe, max_size=processes, placement="host")
            _use(pool)

            def work(_: int) -> int:
                with pool.checkout(timeout=None) as connection:
                    cursor, done = connection.cursor(), 0
                    cursor.execute("select ?", (1,)).fetchone()
                    until = time.monotonic() + seconds
                    while time.monotonic() < until:
                        for _ in range(20):
                            cursor.execute("select ?", (1,)).fetchone()
                        done += 20
                    return done

            return sum(in_processes(processes, work)) / seconds

    counts = CURVE[:2] if quick else CURVE
    names = {count: f"{count} process{'es' if count > 1 else ''}" for count in counts}
    samples = interleaved(
        {name: functools.partial(contestant, count) for count, name in names.items()},
        rounds,
        warm_up=False,
    )
    return Table(
        "hosting_alone",
        "small statements that one host serves",
        "statements/s",
        samples,
        (names[1],),
        more_is_better=True,
        aims=["one host: at least 15,000 on two cores"],
    )


def crowd(quick: bool, slow: type[SlowLogin], pause_s: float) -> Table:
    """Small statements of 8 processes on 2 connections, and how long a use takes for the unlucky ones."""
    rounds, seconds = (1, 0.5) if quick else (3, 5.0)
    slowest: dict[str, list[float]] = {}

    def contestant(placement: Any) -> float:
        with _host() as manager:
            recipe = slow(sqlite3.connect, ":memory:")
            pool = manager.pool("crowd", recipe, max_size=CONNECTIONS, placement=placement)
            _use(pool)  # the server, and the host, are there

            def work(_: int) -> list[float]:
                until, took = time.monotonic() + seconds, []
                while time.monotonic() < until:
                    began = time.perf_counter()
                    _use(pool)
                    took.append(time.perf_counter() - began)
                    if pause_s:
                        time.sleep(pause_s)
                return took

            every = sorted(itertools.chain.from_iterable(in_processes(PROCESSES, work)))
            slowest.setdefault(placement, []).append(every[len(every) * 99 // 100] * 1000)
            return len(every) / seconds

    def pauses(processes: int) -> float:
        """What so many processes could do if a use took no time: the limit of this machine."""

        def work(_: int) -> int:
            until, done = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                time.sleep(pause_s)
                done += 1
            return done

        return sum(in_processes(processes, work)) / seconds

    contestants = {WORKER: lambda: contestant("worker"), HOST: lambda: contestant("host")}
    if pause_s:
        for processes in (CONNECTIONS, PROCESSES):
            contestants[f"{processes} processes that only pause"] = functools.partial(pauses, processes)  # fmt: skip
    samples = interleaved(contestants, rounds, warm_up=False)
    names = {WORKER: "worker", HOST: "host"}
    return Table(
        f"hosting_crowd_{slow.login_s * 1000:g}_{pause_s * 1000:g}",
        f"{PROCESSES} processes on {CONNECTIONS} connections, small statements, {pause_s * 1000:g} ms between two, "
        f"login {slow.login_s * 1000:g} ms",
        "statements/s",
        samples,
        (WORKER,),
        more_is_better=True,
        details={
            name: {"99 % within, ms": median(slowest[which])} for name, which in names.items()
        },
    )


class Napping(DbApiRecipe):
    """SQLite with statements that take 5 ms, without work."""

    def connect(self, opening: Opening) -> Any:
        connection = super().connect(opening)
        connection.create_function("nap", 0, lambda: time.sleep(0.005))
        return connection


def many(quick: bool) -> Iterator[Table]:
    """Many processes on few connections, all the time: is anybody refused, or waiting for much longer than others?

    Over PostgreSQL too, where $MPPOOL_BENCH_POSTGRES is the URL of one.
    """
    yield _many(quick, Napping(sqlite3.connect, ":memory:"), "select nap()", "")
    url = os.environ.get(VARIABLE)
    if url:
        from mppool.psycopg import PsycopgRecipe

        yield _many(quick, PsycopgRecipe(url), "select pg_sleep(0.005)", "PostgreSQL")


def _many(quick: bool, recipe: Any, statement: str, database: str) -> Table:
    rounds, seconds, processes, connections = (1, 0.5, 8, 2) if quick else (3, 6.0, 64, 8)
    figures: dict[str, list[float]] = {}

    def contestant() -> float:
        with _host() as manager:
            pool = manager.pool("many", recipe, max_size=connections, placement="host")
            with pool.checkout(timeout=None) as connection:
                connection.execute(statement).fetchone()

            def work(_: int) -> list[float]:
                until, took = time.monotonic() + seconds, []
                while time.monotonic() < until:
                    began = time.perf_counter()
                    with pool.checkout(timeout=None) as connection:
                        took.append(time.perf_counter() - began)
                        connection.execute(statement).fetchone()
                return took

            waits = sorted(itertools.chain.from_iterable(in_processes(processes, work)))
            middle, late = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
            told = {
                "half within, ms": middle * 1000,
                "99 % within, ms": late * 1000,
                "99 % / half": late / middle,
                "timeouts": pool.stats()["counters"]["timeouts"],
                "hosts, MiB": _memory_of_hosts(pool),
            }
            for name, figure in told.items():
                figures.setdefault(name, []).append(figure)
            return len(waits) / seconds

    samples = interleaved({HOST: contestant}, rounds, warm_up=False)
    return Table(
        f"hosting_many_{database}" if database else "hosting_many",
        f"{processes} processes on {connections} connections{f' of {database}' if database else ''}, statements of 5 ms, "
        "no pause",
        "statements/s",
        samples,
        (),
        more_is_better=True,
        details={HOST: {name: median(found) for name, found in figures.items()}},
        aims=["99 % wait for at most 5 times as long as half"],
    )


def _memory_of_hosts(pool: Any) -> float:
    """MiB, resident, of all of them."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _pids_of_hosts(pool)]
    return sum(pages) * os.sysconf("SC_PAGESIZE") / 2**20


def _pids_of_hosts(pool: Any) -> list[int]:
    return [one["pid"] for one in pool.stats()["processes"] if one["label"].startswith("host")]


def _cpu_micros(pid: int) -> float:
    """What all threads of a process have spent on the CPU. One that ends meanwhile is left out."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1000


# --- how rows are encoded ---------------------------------------------------------------------------------------


def encodings(quick: bool) -> list[Table]:
    """There and back, for rows of Python's simple types, and with exact numbers and times."""
    simple = (12345, "a name of 20 letters", 3.25, None, "x")
    rich = (12345, "a name of 20 letters", Decimal("12.50"), dt.datetime(2026, 1, 2, 3, 4, 5), "x")  # noqa: DTZ001
    return [
        _encoding(quick, name, [_another(row, number) for number in range(count)])
        for name, row in (("simple", simple), ("rich", rich))
        for count in ((1, 100) if quick else (1, 100, 10_000))
    ]


def _another(row: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    """A row of values of its own: what repeats itself is encoded once."""
    kinds = {
        int: lambda one: one + number,
        str: lambda one: f"{one} {number}",
        float: lambda one: one + number,
    }
    rich = {
        Decimal: lambda one: one + number,
        dt.datetime: lambda one: one + dt.timedelta(seconds=number),
    }
    return tuple({**kinds, **rich}.get(type(one), lambda same: same)(one) for one in row)


def _encoding(quick: bool, name: str, rows: list[tuple[Any, ...]]) -> Table:
    rounds, repetitions = (2, 1) if quick else (9, max(1, 5_000 // len(rows)))
    kinds: Any = tuple[tuple(object if one is None else type(one) for one in rows[0])]
    decoder = msgspec.msgpack.Decoder(list[kinds])
    ways: dict[str, tuple[Callable[[Any], bytes], Callable[[Any], Any]]] = {
        "msgspec, a decoder for the shape": (msgspec.msgpack.encode, decoder.decode),
        "pickle 5": (functools.partial(pickle.dumps, protocol=5), pickle.loads),
    }
    ways["what hosts do"] = (lambda rows: packed(rows, None), unpacked)
    if name == "simple":
        ways["marshal"] = (marshal.dumps, marshal.loads)

    def contestant(way: tuple[Callable[[Any], bytes], Callable[[Any], Any]]) -> float:
        encode, decode = way
        return _micros(lambda: decode(encode(rows)), repetitions) / len(rows)

    return Table(
        f"hosting_encoding_{name}_{len(rows)}",
        f"{len(rows):,} {name} rows, encoded and decoded",
        "us a row",
        interleaved({w: lambda way=way: contestant(way) for w, way in ways.items()}, rounds),
        ("pickle 5",),
    )


# --- parts ------------------------------------------------------------------------------------------------------


def _use(pool: Any) -> None:
    with pool.checkout(timeout=None) as connection:
        connection.execute("select 1").fetchone()


def _micros(function: Callable[[], Any], repetitions: int) -> float:
    began = time.perf_counter()
    for _ in range(repetitions):
        function()
    return (time.perf_counter() - began) / repetitions * 1e6


def _median_micros(function: Callable[[], Any], repetitions: int) -> float:
    """Of single calls: what interrupts some of them does not count."""
    clock, took = time.perf_counter_ns, []
    for _ in range(repetitions):
        began = clock()
        function()
        took.append(clock() - began)
    return median(took) / 1000


@contextlib.contextmanager
def _host() -> Iterator[PoolManager]:
    """A manager whose hosts end with the block."""
    with private_manager(linger=0.0) as manager, manager:
        yield manager


@contextlib.contextmanager
def _echo() -> Iterator[tuple[Callable[[], None], int]]:
    """Sends some bytes to another process and reads them again; and the process."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while data := theirs.recv(4096):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()

    def there_and_back() -> None:
        ours.sendall(b"x" * 60)
        ours.recv(4096)

    try:
        yield there_and_back, child
    finally:
        ours.close()
        os.waitpid(child, 0)


if __name__ == "__main__":
    command({"hosting": run})

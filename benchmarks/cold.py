"""What it costs to ask the server, beside asking anybody: a raw socket, or a proxy of multiprocessing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.managers import BaseManager
from typing import Any

from benchmarks.command import command
from benchmarks.load import fork, in_processes, private_manager
from benchmarks.measuring import interleaved, nanoseconds, pinned
from benchmarks.tables import Table
from mppool import CheckoutTimeout, Pool
from mppool.core.events import Checkout

PING_PONG = "AF_UNIX ping-pong"
PROXY = "BaseManager proxy call"
EXCHANGE = "mppool, one exchange"
REFUSED = "mppool, checkout(timeout=0) refused"
COLD = "mppool, cold checkout and discard"
MESSAGE_BYTES = 40
"""As long as a Checkout and its answer."""
CLIENTS = (1, 2, 4, 8, 16)


def run(quick: bool) -> list[Table]:
    """One client on one CPU, then crowds on all of them."""
    return [one_client(quick), *crowds(quick)]


def one_client(quick: bool) -> Table:
    """The time that one question takes, everything on one CPU."""
    rounds, repetitions = (2, 50) if quick else (21, 500)
    with pinned(), _servers() as ways:
        contestants = {
            name: lambda make=make: nanoseconds("ask()", {"ask": ask_of(make)}, repetitions) / 1000
            for name, make in ways.items()
        }
        ask_of = _remembered()
        samples = interleaved(contestants, rounds)
    return Table(
        "cold",
        "Asking the server, one client on one CPU",
        "µs",
        samples,
        (PING_PONG, PROXY),
        notes=[
            "an exchange: a checkout event, decided by the books, and its answer",
            "a cold checkout and discard: a grant, written to the journal, an open, and two errands",
        ],
        aims=[f"{EXCHANGE}: at most 2 (aim 1.5) x {PING_PONG}"],
    )


def crowds(quick: bool) -> list[Table]:
    """Questions per second of 1 to 16 clients together, on all CPUs."""
    rounds, seconds = (1, 0.03) if quick else (9, 0.25)
    numbers = CLIENTS[:2] if quick else CLIENTS
    return [_crowd(number, rounds, seconds) for number in numbers]


def _crowd(number: int, rounds: int, seconds: float) -> Table:
    with _servers() as ways:
        barrier = fork.Barrier(number)

        def client(_: int) -> dict[str, list[float]]:
            def contestant(ask: Callable[[], Any]) -> float:
                ask()
                barrier.wait()
                return _calls_per_second(ask, seconds)

            asks = {name: make() for name, make in ways.items()}
            contestants = {name: lambda ask=ask: contestant(ask) for name, ask in asks.items()}
            return interleaved(contestants, rounds)

        answers = in_processes(number, client)
    samples = {
        name: [sum(all_) for all_ in zip(*(a[name] for a in answers), strict=True)] for name in ways
    }
    return Table(
        f"cold_{number}",
        f"Asking the server, {number} client{'s' if number > 1 else ''}",
        "calls/s",
        samples,
        (PROXY, PING_PONG),
        more_is_better=True,
        notes=[]
        if number < 16
        else [f"{PING_PONG}: a thread of its own for every client, no decisions"],
        aims=[f"{EXCHANGE}: more than a {PROXY}{'; 1.6 (aim 3) x' if number == 16 else ''}"],
    )


def _calls_per_second(ask: Callable[[], Any], seconds: float) -> float:
    calls, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        ask()
        calls += 1
    return calls / (now - began)


def _remembered() -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Makes each way only once."""
    made: dict[Callable[[], Any], Callable[[], Any]] = {}
    return lambda make: made.get(make) or made.setdefault(make, make())


# --- who can be asked ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, Callable[[], Callable[[], Any]]]]:
    """All servers at once, so that rounds can take turns. For each: what makes a client's question."""
    with contextlib.ExitStack() as closing:
        directory_of_echo = closing.enter_context(_echo_server())
        proxy = closing.enter_context(_base_manager())
        manager = closing.enter_context(private_manager())
        full = manager.pool("full", object, max_size=1)
        roomy = manager.pool("roomy", object, max_size=2 * max(CLIENTS))
        closing.callback(full.checkout().release)
        yield {
            PING_PONG: lambda: _ping_pong(directory_of_echo),
            PROXY: lambda: proxy.ask,
            EXCHANGE: lambda: _exchange(full),
            REFUSED: lambda: _refused(full),
            COLD: lambda: lambda: roomy.checkout().discard(),
        }


def _exchange(pool: Pool[Any]) -> Callable[[], Any]:
    local = pool._local
    member = local.member

    def ask() -> Any:
        return member.call(Checkout(local.name, local.default_key, member.next_ticket(), 0.0), None)

    return ask


def _refused(pool: Pool[Any]) -> Callable[[], Any]:
    def ask() -> None:
        try:
            pool.checkout(timeout=0)
        except CheckoutTimeout:
            return
        raise AssertionError("this pool should have been exhausted")

    return ask


class _Asked:
    def ask(self) -> bool:
        return True


class _PlainManager(BaseManager):
    """Of multiprocessing: a thread per connection, pickle."""


_PlainManager.register("Asked", _Asked)


@contextlib.contextmanager
def _base_manager() -> Iterator[Any]:
    with _PlainManager(ctx=fork) as manager:
        yield manager.Asked()


@contextlib.contextmanager
def _echo_server() -> Iterator[str]:
    """A process that sends back what it receives: a blocking thread per connection, nothing else."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0mppool-bench-{os.getpid()}-{time.monotonic_ns()}")
    listener.listen(64)
    process = fork.Process(target=_serve_echo, args=(listener,), daemon=True)
    process.start()
    try:
        yield listener.getsockname()
    finally:
        process.kill()
        process.join()
        listener.close()


def _serve_echo(listener: socket.socket) -> None:
    import threading

    def serve(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _ping_pong(address: str) -> Callable[[], Any]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    message = bytes(MESSAGE_BYTES)

    def ask() -> bytes:
        connection.sendall(message)
        return connection.recv(65536)

    weakref.finalize(ask, connection.close)
    return ask


if __name__ == "__main__":
    command({"cold": run})

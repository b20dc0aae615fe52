"""Whatever is sent to a living server: it serves on, exactly, and does not grow.

MPPOOL_FUZZ_FRAMES says how many frames; MPPOOL_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import (
    Abandoned,
    Attach,
    CallEnded,
    Checkout,
    Closed,
    ClosePool,
    Declaration,
    Declare,
    Declined,
    Died,
    Held,
    NotMine,
    Opened,
    OpeningFailed,
    Returned,
)
from mppool.ids import GrantNumber, ProcessId, Session, Ticket, own_process
from mppool.options import PoolOptions
from mppool.rendezvous.paths import ManagerPaths, manager_paths
from mppool.stats.report import PoolReport
from mppool.wire.framing import encode
from mppool.wire.messages import PROTOCOL, Attached, Hello, Report, WantStats
from tests.server.clients import Client, Member, close_all

FRAMES = int(os.environ.get("MPPOOL_FUZZ_FRAMES", "5000"))
SEED = int(os.environ.get("MPPOOL_FUZZ_SEED", str(random.SystemRandom().randrange(2**32))))
FRAMES_PER_CONNECTION = 20


@pytest.fixture
def paths(runtime_dir: Path) -> Iterator[ManagerPaths]:
    """The paths of a manager in a directory of this test's own."""
    yield manager_paths("shop", runtime_dir)
    close_all()


class Fuzzer:
    """Makes frames: right ones, mutated ones, cut ones, garbage. Never one that commands the server."""

    def __init__(self, seed: int, session: Session) -> None:
        self.random = random.Random(seed)
        self.session = session

    def number(self) -> GrantNumber:
        return GrantNumber(self.random.choice([0, 1, 2**31, 2**62, 2**63, 2**64 - 1]))

    def ticket(self) -> Ticket:
        return Ticket(self.random.choice([0, 1, 2**62, 2**64 - 1]))

    def text(self) -> str:
        return self.random.choice(["", "pool", "k" * 5000, "\0", "ü\U0001f600", "a/b", "fuzz"])

    def seconds(self) -> float:
        return self.random.choice([0.0, -1.0, 1e308, float("inf"), float("nan"), 0.001])

    def declaration(self) -> Declaration:
        size = self.random.choice([None, 0, -1, 2**62, 5])
        # Not "pool": it is another process's right to declare it otherwise, and that would raise its cap.
        name = self.random.choice(["fuzz", "", "a/b", "fuzz2"])
        return Declaration(name, PoolOptions(max_size=size), self.seconds())

    def held(self) -> Held:
        state = self.random.choice(["opening", "open", "returned", "closing"])
        return Held("fuzz", self.text(), self.number(), state, 3, 2)

    def message(self) -> msgspec.Struct:
        role = self.random.choice(["errand", "call", "control"])
        session = self.random.choice([Session(0), self.session])
        report = PoolReport("fuzz", -1, 2**62, 0, {"x": -(2**62)}, {"wait": [1]}, [])
        return self.random.choice(
            [
                Hello(PROTOCOL, "shop", own_process(), role, session, 0.0),
                Hello(
                    PROTOCOL, "shop", ProcessId(self.random.randrange(2**40), 1), role, session, 0.0
                ),
                Hello(self.random.randrange(-9, 9), self.text(), own_process(), role, session, 0.0),
                Attach(self.text(), [self.declaration()], [self.held()]),
                Declare(self.declaration()),
                Checkout("fuzz", self.text(), self.ticket(), self.seconds()),
                Abandoned(self.ticket()),
                Opened(self.number(), self.seconds()),
                OpeningFailed(self.number(), self.text()),
                Declined(self.number()),
                Returned(self.number()),
                Closed(self.number(), "discarded"),
                NotMine(self.number()),
                ClosePool("fuzz"),
                Died(),
                CallEnded(self.ticket()),
                Report(self.random.randrange(2**62), [report]),
                WantStats(),
            ]
        )

    def frame(self) -> bytes:
        kind = self.random.randrange(5)
        if kind == 0:
            return self.random.randbytes(self.random.randrange(1, 300))
        frame = bytearray(encode(self.message()))
        if kind == 1:
            for _ in range(self.random.randrange(1, 6)):
                frame[self.random.randrange(len(frame))] = self.random.randrange(256)
        elif kind == 2:
            del frame[self.random.randrange(len(frame)) :]
        elif kind == 3:
            frame[4:] = self.random.randbytes(len(frame) - 4)
        return bytes(frame)

    def stream(self) -> Iterator[bytes]:
        """What one connection sends: often a right introduction first, else nothing would get further."""
        if self.random.random() < 0.7:
            role = self.random.choice(["errand", "call", "control"])
            session = self.session if role == "call" else Session(0)
            yield bytes(encode(Hello(PROTOCOL, "shop", own_process(), role, session, 0.0)))
            if role == "errand" and self.random.random() < 0.5:
                declaration = Declaration("fuzz", PoolOptions(), 0.0)
                yield bytes(encode(Attach("fuzz", [declaration], [self.held()])))
        for _ in range(FRAMES_PER_CONNECTION):
            yield self.frame()


def resident_kilobytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no VmRSS")


def attack(paths: ManagerPaths, fuzzer: Fuzzer) -> int:
    """One connection's worth of frames; how many could be sent."""
    client = Client(paths)
    sent = 0
    try:
        for data in fuzzer.stream():
            client.socket.sendall(data)
            sent += 1
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(65536):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass  # dropped, as it should be
    client.close()
    return sent


@pytest.mark.timeout(max(120, FRAMES / 200))
def test_a_fuzzed_server_serves_on_and_does_not_grow(paths: ManagerPaths) -> None:
    """The fuzzing connections belong to another process than the honest member's."""
    print(f"MPPOOL_FUZZ_SEED={SEED} MPPOOL_FUZZ_FRAMES={FRAMES}")
    with Member(paths, max_size=2, linger=60.0) as member:
        pid = member.welcome.server.pid
        grants = [member.checkout() for _ in range(2)]
        assert all(isinstance(grant, Grant) for grant in grants)
        sizes = []
        for part in range(4):
            child = os.fork()
            if child == 0:
                try:
                    fuzz_for_a_while(paths, SEED + part, FRAMES // 4)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            sizes.append(resident_kilobytes(pid))
            assert isinstance(member.checkout(timeout=0), Refuse)  # the cap held
        member.errand.send(Closed(grants[0].number, "discarded"))  # type: ignore[union-attr]
        assert isinstance(member.checkout(timeout=0), Grant)
        logs = [path.read_text() for path in paths.directory.glob("log*")]
        assert not any("Traceback" in text for text in logs), logs[0][-5000:]
        print(f"resident kB after each quarter: {sizes}")
        assert sizes[-1] - sizes[0] < 2048 + sizes[0] // 10


def fuzz_for_a_while(paths: ManagerPaths, seed: int, frames: int) -> None:
    fuzzer = Fuzzer(seed, Session(0))
    sent = 0
    while sent < frames:
        # A session of its own, for calls under a session that is over get nowhere.
        errand = Client(paths)
        welcome = errand.hello("errand")
        fuzzer.session = welcome.session  # type: ignore[union-attr]
        errand.send(Attach("fuzz", [Declaration("fuzz", PoolOptions(), 0.0)], []))
        errand.hear_a(Attached)
        for _ in range(5):
            sent += attack(paths, fuzzer)
        errand.close()

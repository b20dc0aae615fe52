"""What is small goes through pipes, and the rest through the socket; both ends in this process. See hosting/pipes.py."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from mppool.errors import ProtocolError
from mppool.hosting import frames, streams
from mppool.hosting import pipes as module
from mppool.hosting.keeping import Flag, Right
from mppool.hosting.pipes import SMALLEST_PIPE, HostPipes, Turns, reader_of, takes_pipes
from mppool.hosting.requests import Gone, Requests
from mppool.hosting.streams import HostGone, Stream
from mppool.hosting.values import encode
from mppool.process.alertness import BRISK, MOST_BRISK
from tests.helpers import PATIENCE, wait_until


class Echo:
    """A host that answers each request with itself. heard: requests. parts: in how many frames it answers."""

    def __init__(self, *, has_pipes: bool = True, more: tuple[int, ...] = ()) -> None:
        """more: descriptors that are sent too."""
        self.has_pipes, self.more = has_pipes, list(more)
        ours, theirs = socket.socketpair()
        self.requests = Requests(theirs, Turns())
        self.heard: list[bytes] = []
        self.parts = 1
        self.is_over = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.stream = Stream(ours, "p", 0)
        self.stream.greet(1.0, monotonic() + PATIENCE)

    def _serve(self) -> None:
        try:
            self.requests.read()
            self.requests.send_first(
                frames.VALUE, encode([1, 7, 0, 0]), self.more, has_pipes=self.has_pipes
            )
            while True:
                body = bytes(self.requests.read())
                self.heard.append(body)
                for _ in range(self.parts - 1):
                    self.requests.send(frames.MORE, body)
                self.requests.send(frames.VALUE, body)
        except (Gone, OSError):
            self.is_over = True
        finally:
            self.requests.close()

    def end(self) -> None:
        self.requests.end()
        self.thread.join(PATIENCE)
        assert self.is_over
        self.stream.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.end()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


SIZES = [
    0,
    1,
    950,
    951,
    952,
    953,
    frames.SMALL - 5,
    frames.SMALL,
    frames.SMALL + 1,
    5000,
    1_000_000,
]


@pytest.mark.parametrize("has_pipes", [True, False])
def test_requests_and_answers_of_all_sizes_arrive(has_pipes: bool) -> None:
    echo = Echo(has_pipes=has_pipes)
    for size in (*SIZES, *reversed(SIZES)):
        body = os.urandom(size)
        kind, answer = echo.stream.ask(body)
        assert kind == frames.VALUE
        assert bytes(answer) == body
    echo.end()


@pytest.mark.parametrize("has_pipes", [True, False])
@pytest.mark.parametrize("size", [10, 5000])
def test_an_answer_in_many_parts_fills_no_pipe(size: int, has_pipes: bool) -> None:
    echo = Echo(has_pipes=has_pipes)
    echo.parts = 300
    body, parts = os.urandom(size), []
    _, last = echo.stream.ask_for_all(body, lambda part: parts.append(bytes(part)))
    assert [*parts, bytes(last)] == [body] * 300
    echo.parts = 1
    assert bytes(echo.stream.ask(b"more")[1]) == b"more"
    echo.end()


def test_requests_that_come_together_are_read_one_after_the_other() -> None:
    """A release is not waited for, so a checkout may follow it at once."""
    ours, theirs = socket.socketpair()
    bodies = [b"release", b"", b"checkout", b"once more"]
    together = b"".join(
        frames.REQUEST.pack(len(body), number) + body for number, body in enumerate(bodies, 1)
    )
    with ours, theirs:
        theirs.setblocking(False)  # all of it is there when it is read
        ours.sendall(together + frames.REQUEST.pack(4, 5) + b"ha")  # and the half of one
        requests = Requests(theirs, Turns())
        assert [bytes(requests.read()) for _ in bodies] == bodies
        ours.sendall(b"lf")
        assert bytes(requests.read()) == b"half"


def test_where_gevent_has_patched_sockets_there_are_no_pipes() -> None:
    class Patched(socket.socket):
        __module__ = "gevent._socket3"

    with socket.socket() as plain, Patched() as patched:
        assert takes_pipes(plain)
        assert not takes_pipes(patched)


def test_what_is_not_waited_for_comes_before_what_follows(echo: Echo) -> None:
    stream = echo.stream
    for size in (10, 5000):
        stream._request += 1
        stream._send(b"x" * size)
    stream._request += 1
    stream._send(b"last")
    answers = []
    for number in range(stream._request - 2, stream._request + 1):
        stream._request = number
        answers.append(len(stream._receive()[1]))
    assert answers == [10, 5000, 4]


def test_an_answer_is_waited_for_where_it_comes(echo: Echo) -> None:
    stream = echo.stream
    stream._request += 1
    stream._send(b"x")
    stream._wait_for_answer(monotonic() + PATIENCE, 0.0)
    assert stream._receive()[1] == b"x"


def test_nothing_on_a_pipe_is_longer_than_any_pipe() -> None:
    assert frames.SMALL + max(frames.ANSWER.size, frames.REQUEST.size) <= SMALLEST_PIPE


def test_an_answer_to_another_request_is_not_read(echo: Echo) -> None:
    stream = echo.stream
    stream._request += 1
    stream._send(b"left")
    wait_until(lambda: echo.heard, "the request")
    with pytest.raises(ProtocolError, match="instead of"):
        stream.ask(b"next")
    assert stream.is_closed


@pytest.mark.parametrize("where", ["pipe", "socket"])
def test_who_waits_for_a_request_ends_although_others_have_copies(where: str) -> None:
    echo = Echo()
    stream: Any = echo.stream
    copies = [os.dup(stream._connection.fileno()), os.dup(stream._pipes._requests.fileno())]
    if where == "socket":
        stream._write(frames.REQUEST.pack(5000 | frames.BIG, 9))  # and nothing follows
    echo.end()
    assert not echo.thread.is_alive()
    for copy in copies:
        os.close(copy)


@pytest.mark.parametrize(("parts", "size"), [(10_000, 10), (100, 1_000_000)])
def test_who_waits_for_a_worker_to_read_ends(parts: int, size: int) -> None:
    echo = Echo()
    echo.parts = parts
    stream = echo.stream
    stream._request += 1
    stream._send(b"x" * size)
    wait_until(lambda: echo.heard, "the request")
    echo.end()
    assert not echo.thread.is_alive()


def test_an_end_before_the_pipes_are_there_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    requests = Requests(theirs, Turns())
    requests.end()
    with pytest.raises(Gone):
        requests.send_first(frames.VALUE, b"", [], has_pipes=True)
    requests.close()
    ours.close()


def test_an_end_while_the_pipes_are_made_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    requests = Requests(theirs, Turns())
    sent = HostPipes.sent

    def end_too(pipes: HostPipes) -> None:
        requests.end()
        sent(pipes)

    monkeypatch.setattr(HostPipes, "sent", end_too)
    with pytest.raises(Gone):
        requests.send_first(frames.VALUE, b"", [], has_pipes=True)
    requests.close()
    ours.close()


def test_a_host_without_descriptors_goes_on_over_the_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, opened = open_files(), os.open

    def fails(path: Any, *more: Any) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        echo = Echo()
    assert "without pipes" in caplog.text
    assert open_files() == before + 2, "both ends of the socket, and nothing of pipes"
    for size in (10, 5_000, 100_000):
        assert bytes(echo.stream.ask(b"x" * size)[1]) == b"x" * size
    echo.end()
    assert open_files() == before


@pytest.mark.parametrize("has_pipes", [True, False])
def test_what_says_that_a_lease_is_kept_is_taken_for_no_pipe(has_pipes: bool) -> None:
    before = open_files()
    right, flag = Right(), Flag()
    echo = Echo(has_pipes=has_pipes, more=(right.fileno(), flag.fileno()))
    assert bytes(echo.stream.ask(b"x")[1]) == b"x"
    flag.set(True)
    assert echo.stream._flag is not None
    assert echo.stream._flag.is_set()
    echo.end()
    echo.stream._right = echo.stream._flag = None
    os.close(flag.fileno())
    del right, flag
    assert open_files() == before


def test_a_host_that_is_gone_is_seen_by_the_worker(echo: Echo) -> None:
    stream = echo.stream
    echo.end()
    with pytest.raises(HostGone):
        stream.ask(b"x")
    with pytest.raises(HostGone):
        stream.ask(b"x" * 10_000)
    assert stream.is_closed


def test_a_stream_that_was_closed_here_is_gone(echo: Echo) -> None:
    stream = echo.stream
    stream.close()
    stream.is_closed = False  # another thread has just closed it
    with pytest.raises(HostGone):
        stream.ask(b"x")


def test_nothing_stays_open() -> None:
    before = open_files()
    for _ in range(3):
        Echo().end()
    pipes = HostPipes(Turns())
    pipes.ring(b"x")
    pipes.close()
    pipes.ring(b"x")  # too late, and no error
    assert open_files() == before


# --- waiting awake ------------------------------------------------------------------------------------------


class Pipes:
    """So many pipes of one process, each with its reader."""

    def __init__(self, count: int) -> None:
        turns = Turns()
        self.ends = [os.pipe() for _ in range(count)]
        self.files = [FileIO(reading, "r") for reading, _ in self.ends]
        self.reads = [reader_of(file, turns) for file in self.files]
        self.turns = turns

    def write(self, which: int = 0) -> None:
        os.write(self.ends[which][1], b"x")

    def exchange(self, which: int = 0, times: int = 1) -> None:
        """Something is there already when it is waited for."""
        for _ in range(times):
            self.write(which)
            assert self.reads[which](10) == b"x"

    def close(self) -> None:
        for file, (_, writing) in zip(self.files, self.ends, strict=True):
            file.close()
            os.close(writing)


@pytest.fixture
def two_pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipes]:
    """A sleep that ends within 20 s is short, and awake means for 1,000 s: a test in which nothing comes would not end."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(module, "BRISK_S", 20.0)
    monkeypatch.setattr(module, "AWAKE_S", 1000.0)
    made = Pipes(2)
    yield made
    made.close()


def test_one_that_is_answered_soon_again_and_again_waits_awake(
    two_pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_pipes.exchange(times=BRISK + 1)  # the first one only makes it known
    assert two_pipes.turns.alertness.is_awake
    yields = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(two_pipes.write()))
    assert two_pipes.reads[0](10) == b"x", "it came while others had the CPU"
    assert len(yields) == 1
    assert two_pipes.turns.alertness.is_awake


def _in_vain(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes while pipe 0 is waited for awake; it comes when the reader sleeps."""
    reader = pipes.reads[0].__self__  # type: ignore[attr-defined]
    assert pipes.turns.alertness.is_awake
    sleep = reader._sleep

    def sleeps(size: int) -> bytes:
        pipes.write()
        data: bytes = sleep(size)
        return data

    yields = iter(range(1000))
    with monkeypatch.context() as patched:
        patched.setattr(module, "AWAKE_S", 0.0)
        patched.setattr(module, "AWAY_S", 1000.0)  # although a busy machine takes the CPU away
        patched.setattr(os, "sched_yield", lambda: next(yields))
        patched.setattr(reader, "_sleep", sleeps)
        assert reader.read(10) == b"x"
    assert not pipes.turns.alertness.is_awake


def test_what_does_not_come_soon_is_waited_for_asleep(
    two_pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_pipes.exchange(times=BRISK + 1)
    _in_vain(two_pipes, monkeypatch)
    two_pipes.exchange(times=2 * BRISK - 1)
    assert not two_pipes.turns.alertness.is_awake
    two_pipes.exchange()
    assert two_pipes.turns.alertness.is_awake, "after twice as many"
    two_pipes.exchange()  # it pays
    _in_vain(two_pipes, monkeypatch)
    two_pipes.exchange(times=2 * BRISK)
    assert two_pipes.turns.alertness.is_awake, "it did pay in between"


@pytest.mark.parametrize("away_s", [0.09, 0.2])
def test_where_others_want_the_cpu_nobody_waits_awake_for_long(
    two_pipes: Pipes, monkeypatch: pytest.MonkeyPatch, away_s: float
) -> None:
    """A thread that offers its CPU on a busy machine gets it back late; what has come by then has not paid."""
    monkeypatch.setattr(module, "AWAKE_S", 0.1)
    monkeypatch.setattr(module, "AWAY_S", 0.05)
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    two_pipes.exchange(times=BRISK + 1)

    def others_run() -> None:
        now[0] += away_s
        two_pipes.write()

    monkeypatch.setattr(os, "sched_yield", others_run)
    assert two_pipes.reads[0](10) == b"x"
    two_pipes.exchange(times=MOST_BRISK - 1)
    assert not two_pipes.turns.alertness.is_awake
    two_pipes.exchange()
    assert two_pipes.turns.alertness.is_awake, "the machine may be calm by now"


def test_after_long_sleeps_nobody_waits_awake(
    two_pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRISK_S", 0.0)
    two_pipes.exchange(times=3 * BRISK)
    assert not two_pipes.turns.alertness.is_awake


def test_nobody_waits_awake_beside_another(two_pipes: Pipes) -> None:
    two_pipes.exchange(times=BRISK + 1)
    for _ in range(BRISK):
        two_pipes.exchange(1)
        two_pipes.exchange(0)
        assert not two_pipes.turns.alertness.is_awake


def test_nobody_waits_awake_on_a_single_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    pipes = Pipes(1)
    assert pipes.reads[0] == pipes.files[0].read
    pipes.close()


def test_an_end_is_seen_by_one_that_waits_awake(two_pipes: Pipes) -> None:
    two_pipes.exchange(times=BRISK + 1)
    reading, writing = two_pipes.ends[0]
    os.close(writing)
    assert two_pipes.reads[0](10) == b""
    two_pipes.files[0].close()
    with pytest.raises(ValueError, match="closed"):
        two_pipes.reads[0](10)
    two_pipes.ends[0] = (reading, os.open(os.devnull, os.O_WRONLY))


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Both ends wait awake after some exchanges. Returns what the worker's streams share."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(module, "BRISK_S", 20.0)
    monkeypatch.setattr(module, "AWAKE_S", 20.0)
    monkeypatch.setattr(module, "AWAY_S", 20.0)
    turns = Turns()
    monkeypatch.setattr(streams, "_TURNS", turns)
    return turns


def test_both_ends_of_a_stream_wait_awake(brisk: Turns) -> None:
    echo = Echo()
    for _ in range(2 * BRISK):
        assert bytes(echo.stream.ask(b"x")[1]) == b"x"
    assert brisk.alertness.is_awake
    assert echo.requests._turns.alertness.is_awake
    echo.end()  # which ends a host that waits awake


def test_streams_of_a_worker_that_take_turns_are_not_waited_for_awake(brisk: Turns) -> None:
    echoes = [Echo(), Echo()]
    for _ in range(2 * BRISK):
        for echo in echoes:
            assert bytes(echo.stream.ask(b"x")[1]) == b"x"
            assert not brisk.alertness.is_awake
    for echo in echoes:
        echo.end()


def test_a_bell_never_waits() -> None:
    pipes = HostPipes(Turns())
    for _ in range(70):
        pipes.ring(b"x" * 1000)
    os.set_blocking(pipes._requests.fileno(), False)
    assert pipes.read(1 << 20)
    pipes.close()

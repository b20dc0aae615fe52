"""Real HTTP load: threads that send one request after the other, each on a connection of its own."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import NamedTuple

_TIMEOUT_S = 60.0
_RATE_OVER_S = 1.0


class Failure(NamedTuple):
    """A request that got no right answer. Times are monotonic.

    lost: the connection broke before the whole answer had come; else it came, and was wrong.
    """

    started: float
    ended: float
    lost: bool
    text: str


@dataclass
class Death:
    """A worker that was killed: between these monotonic times, requests inside it were lost."""

    killed_at: float
    gone_at: float


class Load:
    """Clients that work until they are stopped.

    _lock guards the counters; nothing else is done while it is held.
    """

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._numbers = iter(range(1, 10**9))
        self._recent: deque[float] = deque()
        self.answered = 0
        self.by_worker: Counter[int] = Counter()
        self.failures: list[Failure] = []
        self.longest_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"client-{number}", daemon=True)
            for number in range(clients)
        ]

    def start(self) -> None:
        """Send requests from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float = _TIMEOUT_S) -> None:
        """Finish the requests that are on their way, for at most so many seconds."""
        self._stopping.set()
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def rate(self) -> float:
        """Answers per second, lately."""
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0] < now - _RATE_OVER_S:
                self._recent.popleft()
            return len(self._recent) / _RATE_OVER_S

    def judge(self, deaths: list[Death]) -> tuple[list[Failure], list[Failure]]:
        """Failures, and apart from them the requests that were in flight inside a killed worker.

        A request was, if it had been sent before the worker was gone, and its connection broke without
        an answer when, or right after, the worker was killed. A wrong answer is never excused.
        """
        with self._lock:
            found = list(self.failures)
        excused = [one for one in found if one.lost and any(_inside(one, d) for d in deaths)]
        return [one for one in found if one not in excused], excused

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                number = next(self._numbers)
            started = time.monotonic()
            try:
                worker = ask(self._port, number)
            except (OSError, http.client.HTTPException, WrongAnswer) as error:
                ended = time.monotonic()
                lost = isinstance(error, (ConnectionError, http.client.IncompleteRead))
                text = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.failures.append(Failure(started, ended, lost, text))
                time.sleep(0.05)
            else:
                ended = time.monotonic()
                with self._lock:
                    self.answered += 1
                    self.by_worker[worker] += 1
                    self._recent.append(ended)
                    self.longest_s = max(self.longest_s, ended - started)


_AFTER_S = 0.5
"""How late, on a busy machine, a client learns that its connection broke."""


def _inside(failure: Failure, death: Death) -> bool:
    return (
        failure.started <= death.gone_at
        and death.killed_at <= failure.ended <= death.gone_at + _AFTER_S
    )


class WrongAnswer(Exception):
    """There was an answer, and it is not the one that was asked for."""


def ask(port: int, number: int, timeout_s: float = _TIMEOUT_S) -> int:
    """Send a number, expect it back; the pid of the worker that answered.

    Raises OSError or HTTPException where no answer comes, WrongAnswer for any other.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", f"/?{number}", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
        worker = response.headers.get("X-Worker", "")
        if response.status != http.client.OK or body != str(number).encode() or not worker:
            raise WrongAnswer(f"status {response.status}, {body[:200]!r} to {number}")
        return int(worker)
    finally:
        connection.close()

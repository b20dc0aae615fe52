"""Managers of our own, and crowds of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from mppool import PoolManager

fork = multiprocessing.get_context("fork")
"""How web servers multiply. All state of a benchmark is inherited, so lambdas are fine."""


@contextlib.contextmanager
def private_manager(linger: float = 1.0) -> Iterator[PoolManager]:
    """A manager in a runtime directory that nobody else knows."""
    directory = tempfile.mkdtemp(prefix="mppool-bench-")
    manager = PoolManager("bench", runtime_dir=directory, linger=linger)
    try:
        yield manager
    finally:
        manager.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def in_processes(number: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0)`, `work(1)` ... return, each in a process of its own, all at once."""

    def run(index: int, answers: Any) -> None:
        try:
            answers.send((True, work(index)))
        except BaseException:  # noqa: BLE001  # raised again, in the parent
            answers.send((False, traceback.format_exc()))

    pipes, processes = [], []
    for index in range(number):
        reading, writing = fork.Pipe(duplex=False)
        process = fork.Process(target=run, args=(index, writing))
        process.start()
        writing.close()
        pipes.append(reading)
        processes.append(process)
    answers = [reading.recv() for reading in pipes]
    for process in processes:
        process.join()
    failed = [text for succeeded, text in answers if not succeeded]
    if failed:
        raise RuntimeError(f"{len(failed)} of {number} processes failed; the first:\n{failed[0]}")
    return [answer for _, answer in answers]


def in_threads(number: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0)`, `work(1)` ... return, each in a thread of its own. They begin at the same moment."""
    answers: list[Any] = [None] * number
    failed: list[BaseException] = []
    start = threading.Barrier(number)

    def run(index: int) -> None:
        start.wait()
        try:
            answers[index] = work(index)
        except BaseException as error:  # noqa: BLE001  # raised again, in the caller
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return answers


class Witness:
    """Counts connections over all processes, in shared memory: it believes no pool's books."""

    def __init__(self, open_s: float) -> None:
        """open_s: seconds that opening takes."""
        self.open_s = open_s
        # open now, the most ever, opened in all; being opened now, the most ever
        self._counts = fork.Array("l", 5)

    def open(self) -> object:
        """Open a connection. It counts from the first moment, as a database counts a login."""
        counts = self._counts
        with counts.get_lock():
            counts[0] += 1
            counts[1] = max(counts[1], counts[0])
            counts[2] += 1
            counts[3] += 1
            counts[4] = max(counts[4], counts[3])
        time.sleep(self.open_s)
        with counts.get_lock():
            counts[3] -= 1
        return object()

    def close(self, connection: object) -> None:
        """Close a connection."""
        with self._counts.get_lock():
            self._counts[0] -= 1

    @property
    def held(self) -> int:
        """How many are open now."""
        return self._counts[0]

    @property
    def peak(self) -> int:
        """The most that were ever open at once."""
        return self._counts[1]

    @property
    def opens(self) -> int:
        """How many were opened in all."""
        return self._counts[2]

    @property
    def opening(self) -> int:
        """How many are being opened now."""
        return self._counts[3]

    @property
    def most_opening(self) -> int:
        """The most that were ever being opened at once."""
        return self._counts[4]

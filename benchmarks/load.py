"""Managers of our own, and crowds of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
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
        except BaseException:
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

"""Threads for chores: none is lost beside a sleeping thread, and threads that have nothing to do end."""

from __future__ import annotations

import os
import random
import threading

import pytest

from mppool.process.executor import BackgroundExecutor
from tests.helpers import PATIENCE, wait_until


def parked(executor: BackgroundExecutor) -> int:
    """How many threads sleep."""
    return len(executor._parked)


def test_one_thread_does_one_chore_after_the_other() -> None:
    executor = BackgroundExecutor("one after the other", idle_s=PATIENCE)
    names: set[int] = set()
    for _ in range(20):
        executor.add(lambda: names.add(threading.get_ident()))
        wait_until(lambda: parked(executor) == 1, "the thread has nothing to do")
    assert len(names) == 1


def test_a_chore_that_hangs_keeps_no_other_waiting() -> None:
    executor = BackgroundExecutor("hangs", idle_s=PATIENCE)
    executor.add(lambda: None)
    wait_until(lambda: parked(executor) == 1, "the thread has nothing to do")
    gate, done = threading.Event(), threading.Event()
    executor.add(lambda: gate.wait(PATIENCE) and None)
    executor.add(done.set)
    assert done.wait(PATIENCE), "it has a thread of its own"
    gate.set()
    wait_until(lambda: parked(executor) == 2, "both have nothing to do")


@pytest.mark.parametrize("most", [1, 64])
def test_no_chore_is_lost_beside_threads_that_park_and_end(most: int) -> None:
    """Threads give up waiting at once here, so that chores come in every instant of their end."""
    executor = BackgroundExecutor("all ends", idle_s=0.0, most=most)
    done: list[int] = []

    def add(number: int) -> None:
        chance = random.Random(number)
        for chore in range(300):
            executor.add(lambda chore=chore: done.append(chore))  # type: ignore[misc]
            if chance.random() < 0.3:
                threading.Event().wait(0.0001 * chance.random())

    adders = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join(PATIENCE)
    wait_until(lambda: len(done) == 1200, "all chores are done")
    wait_until(lambda: executor._threads == 0, "no thread is left")
    assert not executor._queue
    assert not executor._parked


def test_who_was_interrupted_before_it_woke_a_thread_loses_no_chore() -> None:
    executor = BackgroundExecutor("interrupted", idle_s=PATIENCE)
    executor.add(lambda: None)
    wait_until(lambda: parked(executor) == 1, "the thread has nothing to do")
    done = threading.Event()
    gate = executor._parked.pop()  # as `add` does it; then an interrupt strikes
    executor._queue.append(done.set)
    executor.interrupted()
    assert done.wait(PATIENCE)
    gate.release()


def test_the_only_thread_of_a_child_ends() -> None:
    """A chore that forks: the child consists of its thread, which does not wait for another chore there."""
    executor = BackgroundExecutor("forks", idle_s=PATIENCE)
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())
        if not children[0]:
            os._exit(3 if executor._next() is None else 4)

    executor.add(fork)
    wait_until(lambda: bool(children), "the fork")
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 3

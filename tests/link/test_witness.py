from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mppool.ids import ProcessId, own_process
from mppool.link import witness

THREADS = 4


def test_threads_that_ask_first_at_one_time_get_the_same_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the server knows one of two, and tells the calls of the other that their session is over, for ever."""
    meet = threading.Barrier(THREADS)

    def found() -> ProcessId:
        meet.wait(20)
        return own_process()

    monkeypatch.setattr(witness, "own_process", found)
    one = witness.Witness()
    with ThreadPoolExecutor(THREADS) as threads:
        processes = [
            asked.result() for asked in [threads.submit(one.process) for _ in range(THREADS)]
        ]
    assert processes == [one.process()] * THREADS

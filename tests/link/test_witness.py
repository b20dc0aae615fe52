from __future__ import annotations

import os
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


def test_what_is_hidden_is_closed_and_no_number_is_kept() -> None:
    """The number may be somebody else's, whose descriptor a forked child would close."""
    one = witness.Witness()
    assert one.descriptors() == []
    one.show()
    (number,) = one.descriptors()
    assert one.is_shown
    one.show()
    assert one.descriptors() == [number], "one is enough"
    one.hide()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    taken = os.dup2(0, number)
    try:
        assert one.descriptors() == []
        one.hide()
        os.fstat(taken)  # not ours: it is still open
    finally:
        os.close(taken)
    one.show()
    assert one.is_shown
    one.hide()

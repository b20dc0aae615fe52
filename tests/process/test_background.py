"""The background thread: who finds out that there is none."""

from __future__ import annotations

import threading

import pytest

from mppool.process.background import BackgroundThread
from tests.helpers import wait_until

# An exit within the thread, which Python lets pass, is an unhandled exception for pytest.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Idles:
    """Its work: to sleep until it is told to end."""

    def __init__(self, thread: BackgroundThread) -> None:
        self.thread = thread
        self.is_over = False

    def turn(self) -> None:
        if self.is_over:
            raise SystemExit
        self.thread.sleep(None)

    def failed(self) -> None:
        raise AssertionError("no turn fails")

    def ended(self) -> None:
        """Nothing depends on it."""

    def end(self) -> None:
        self.is_over = True
        self.thread.wake()


@pytest.fixture
def thread() -> BackgroundThread:
    return BackgroundThread("t", lambda function: function())


def _has_gone(thread: BackgroundThread) -> None:
    """Its exit is to be found by pytest in this test, not in a later one."""
    one = thread._thread
    if one is not None:
        wait_until(lambda: not one.is_alive(), "the thread has gone")


def test_a_thread_that_has_ended_is_started_again(thread: BackgroundThread) -> None:
    for _ in range(2):
        work = Idles(thread)
        thread.does(work)
        thread.revive()
        wait_until(thread.running.locked, "the thread runs")
        assert not thread.has_ended
        work.end()
        wait_until(lambda: thread.has_ended, "the end of the thread")
        _has_gone(thread)
        assert not thread.running.locked()


def test_a_thread_that_cannot_be_had_counts_as_ended(
    thread: BackgroundThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread.does(Idles(thread))
    with pytest.raises(RuntimeError):
        thread.ensure_running()
    assert thread.has_ended


def test_a_start_that_was_interrupted_counts_as_ended(
    thread: BackgroundThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    work = Idles(thread)
    thread.does(work)
    with pytest.raises(KeyboardInterrupt):
        thread.ensure_running()
    assert not thread.has_ended
    thread.interrupted()
    assert thread.has_ended
    monkeypatch.undo()
    thread.revive()
    wait_until(thread.running.locked, "the thread runs")
    thread.interrupted()
    assert not thread.has_ended, "another thread was interrupted, and this one runs"
    work.end()
    wait_until(lambda: thread.has_ended, "the end of the thread")
    _has_gone(thread)

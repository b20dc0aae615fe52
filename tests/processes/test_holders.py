"""Who holds what: labels of checkouts, slow waits, and the message of a checkout that waited in vain."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import pytest

from mppool import CheckoutTimeout, ConfigurationError, InProcessManager, Pool, PoolManager
from mppool.base_manager import Manager
from mppool.cli.looking import held_in
from tests.helpers import PATIENCE, wait_until


def lent(pool: Pool[Any]) -> list[tuple[str, str]]:
    """Label and thread of what is in use, as the statistics say."""
    return [
        (one["label"], one["thread"])
        for one in pool.stats()["resources"]
        if one["state"] == "in_use"
    ]


@pytest.fixture(params=["in_process", "server"])
def either(request: pytest.FixtureRequest, manager: PoolManager) -> Iterator[Manager]:
    if request.param == "server":
        yield manager
        return
    with InProcessManager() as made:
        yield made


def test_a_label_lasts_as_long_as_its_lease(either: Manager) -> None:
    pool = either.pool("p", object, max_size=2)
    with pool.checkout(label="nightly report"):
        assert lent(pool) == [("nightly report", threading.current_thread().name)]
        (lease,) = held_in(either.stats())  # type: ignore[arg-type]
        assert (lease["label"], lease["thread"]) == lent(pool)[0]
    assert [one["label"] for one in pool.stats()["resources"]] == [""]
    with pool.checkout():  # the same resource
        assert lent(pool) == [("", "")]
    with pool.checkout(identity="anna", label="for anna"):
        assert lent(pool)[0][0] == "for anna"


@pytest.mark.parametrize("guard", [False, True])
def test_the_label_of_a_task(either: Manager, guard: bool) -> None:
    blocking = either.pool("blocking", list, guard=guard)

    async def main() -> None:
        asyncio.current_task().set_name("job 7")  # type: ignore[union-attr]
        async with blocking.acheckout(label="export"):
            ((label, thread),) = lent(blocking)
            assert (label, thread.split(", ")[1]) == ("export", "job 7")

    asyncio.run(main())


def test_the_label_of_an_async_pool(either: Manager) -> None:
    async def opened() -> object:
        return object()

    async def main() -> None:
        pool = either.apool("p", opened)
        for _ in range(2):  # cold, warm
            async with pool.checkout(label="export"):
                (one,) = (await pool.stats())["resources"]
                assert one["label"] == "export"
        async with pool.checkout():
            (one,) = (await pool.stats())["resources"]
            assert one["label"] == ""
        with pytest.raises(ConfigurationError, match="label="):
            pool.checkout(label="")
        await pool.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("label", ["", 7, "a" * 101, "a\x1b[2J"])
def test_what_is_no_label_is_refused(either: Manager, label: Any) -> None:
    pool = either.pool("p", object)
    with pytest.raises(ConfigurationError, match="label="):
        pool.checkout(label=label)
    with pytest.raises(ConfigurationError, match="label="):
        pool.acheckout(label=label)
    assert pool.stats()["size"] == 0


def _hold(pipe: Connection) -> None:
    """Another process: it holds the only resource until it is told to give it back."""
    manager = PoolManager("t", label="batch", linger=0.0)
    pool = manager.pool("p", object, max_size=1, wait_warn=60.0)
    with pool.checkout(timeout=30, label="nightly report"):
        pipe.send(None)
        pipe.recv()
    manager.close()


class Holder:
    """A process that has the only resource of the pool `p`."""

    def __init__(self) -> None:
        self._pipe, other = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_hold, args=(other,))
        self._process.start()
        self._pipe.recv()
        self.pid = self._process.pid or 0

    def release(self) -> None:
        """It gives it back, and ends."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join()


@pytest.fixture
def holder(manager: PoolManager) -> Iterator[Holder]:
    made = Holder()
    yield made
    made.release()


def test_a_timeout_names_the_holders_of_other_processes(
    manager: PoolManager, holder: Holder
) -> None:
    pool = manager.pool("p", object, max_size=1, wait_warn=60.0)

    def said() -> str:
        with pytest.raises(CheckoutTimeout) as error:
            pool.checkout(timeout=1.0)
        return str(error.value)

    # They are asked for ahead of the end; a busy machine may not hear in time.
    text = wait_until(lambda: "longest held" in (text := said()) and text, "the holders")
    assert f"'nightly report' in batch (pid {holder.pid}), thread MainThread for " in text
    with pytest.raises(CheckoutTimeout) as error:
        pool.checkout(timeout=0)
    assert "longest held" not in str(error.value)


def warnings(caplog: pytest.LogCaptureFixture, seconds: float = 0.5) -> list[str]:
    return [text for text in list(caplog.messages) if f"wait_warn={seconds:g} s" in text]


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_a_slow_wait_is_warned_of_once_with_the_holders(
    kind: str, manager: PoolManager, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    pool = manager.pool(
        "p", object, max_size=1, wait_warn=3.0
    )  # time for the holder's answer, on a busy machine

    def wait() -> None:
        if kind == "thread":
            pool.checkout(timeout=PATIENCE).release()
        else:
            asyncio.run(awaited())

    async def awaited() -> None:
        (await pool.acheckout(timeout=PATIENCE)).release()

    with caplog.at_level(logging.WARNING, logger="mppool"):
        thread = threading.Thread(target=wait, name="request 12")
        thread.start()
        (warning,) = wait_until(lambda: warnings(caplog, 3.0), "the warning")
        holder.release()
        thread.join()
    assert f"in process {os.getpid()}" in warning
    assert "in thread request 12" in warning
    assert f"Held: 'nightly report' in batch (pid {holder.pid}), thread MainThread for " in warning
    assert warnings(caplog, 3.0) == [warning]


def test_slow_waits_of_one_moment_are_one_warning(
    manager: PoolManager, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    pool = manager.pool("p", object, max_size=1, wait_warn=0.5)
    together = threading.Barrier(8)

    def wait() -> None:
        together.wait()
        pool.checkout(timeout=PATIENCE).release()

    def told_of() -> int:
        said = (re.search(r"(a|\d+) checkouts? ha", text) for text in warnings(caplog))
        return sum(1 if one[1] == "a" else int(one[1]) for one in said if one)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    with caplog.at_level(logging.WARNING, logger="mppool"):
        for thread in threads:
            thread.start()
        wait_until(lambda: told_of() == 8, "all are told of")
        holder.release()
        for thread in threads:
            thread.join()
    assert len(warnings(caplog)) < 8


def test_who_waits_no_longer_is_not_warned_of(
    either: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    pool = either.pool("p", object, max_size=1, wait_warn=60.0)
    began: list[Callable[[], None]] = []
    with caplog.at_level(logging.WARNING, logger="mppool"):
        lease = pool.checkout()
        thread = threading.Thread(target=lambda: began.append(pool.checkout(timeout=40).release))
        thread.start()
        wait_until(lambda: pool.stats()["waiting"] == 1, "the thread waits")
        lease.release()
        thread.join()
    began[0]()
    assert caplog.messages == []

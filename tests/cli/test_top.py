"""`mppool top` over a real server, on real sizes of a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from mppool import Pool, PoolManager
from tests.helpers import PATIENCE, wait_until

pytest.importorskip("textual")

from mppool.cli.finding import stats_of
from mppool.cli.top.screen import Top
from mppool.cli.top.watch import Watch

SIZES = [(80, 24), (200, 60)]


class Thing:
    def close(self) -> None:
        pass


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    manager = PoolManager("shop")
    yield manager
    manager.shutdown()


@pytest.fixture
def orders(manager: PoolManager) -> Pool[Thing]:
    return manager.pool("orders", Thing, max_size=3)


def lines_of(app: Top) -> list[str]:
    """What the screen shows."""
    from textual.widgets import Static

    shown = app.query_one("#all", Static)
    # In old releases of textual what is rendered cannot be read as a text.
    text = shown.renderable if hasattr(shown, "renderable") else shown.render()
    return str(text).split("\n")


def on_screen(
    manager: PoolManager,
    size: tuple[int, int],
    play: Callable[[Top, Callable[[str], Awaitable[list[str]]], Any], Awaitable[None]],
) -> None:
    """Play with a running screen; the second argument waits until a text is seen."""

    async def run() -> None:
        app = Top(lambda: stats_of(manager), "shop", 0.1)
        async with app.run_test(size=size) as pilot:

            async def seen(pattern: str) -> list[str]:
                deadline = time.monotonic() + PATIENCE
                while not re.search(pattern, "\n".join(lines := lines_of(app))):
                    assert time.monotonic() < deadline, (pattern, lines)
                    await pilot.pause(0.02)
                return lines

            await play(app, seen, pilot.press)

    asyncio.run(run())


@pytest.mark.parametrize("size", SIZES)
def test_every_screen_fits(
    manager: PoolManager, orders: Pool[Thing], size: tuple[int, int]
) -> None:
    width, height = size
    for number in range(3):
        manager.pool(f"a-pool-with-a-long-name-{number}", Thing, max_size=2)

    async def play(app: Top, seen: Any, press: Any) -> None:
        for keys, pattern in (
            ([], r"orders +█+·* +1 used +0 idle +3 cap +0 waiting"),
            (["question_mark"], r"Keys"),
            (["escape", "s", "s", "s", "s", "end"], r"sort: name"),
            (["down"] * 4 + ["enter"], r"slots +used +idle"),
            (["enter"], rf"Process {os.getpid()}"),
        ):
            for key in keys:
                await press(key)
            lines = await seen(pattern)
            assert len(lines) == height
            assert max(map(len, lines)) <= width
            assert lines[0].startswith("mppool top: shop")

    with orders.checkout():
        on_screen(manager, size, play)


def test_lanes_and_budgets_have_lines(manager: PoolManager) -> None:
    budget = manager.budget("db", 4)
    jobs = manager.pool("jobs", Thing, max_size=3, lanes={"web": 2}, budget=budget)

    async def play(app: Top, seen: Any, press: Any) -> None:
        for pattern in (
            r"lane web +1 used +2 reserved +0 waiting",
            r"lane \(common\) +0 used +1 reserved",
            r"= db .* 1 used +0 idle +4 cap",
        ):
            await seen(pattern)

    with jobs.checkout(lane="web"):
        on_screen(manager, SIZES[0], play)


def test_leases_and_events_are_shown_as_they_happen(
    manager: PoolManager, orders: Pool[Thing]
) -> None:
    async def play(app: Top, seen: Any, press: Any) -> None:
        await seen(rf"Oldest leases\n.* orders +pid {os.getpid()}")
        with pytest.raises(TimeoutError):
            orders.checkout(timeout=0)
        await seen(r"\d\d:\d\d:\d\d  orders: checkouts timed out: 1")

    leases = [orders.checkout() for _ in range(3)]
    on_screen(manager, (80, 24), play)
    for lease in leases:
        lease.release()


def test_a_pause_keeps_what_is_shown(manager: PoolManager, orders: Pool[Thing]) -> None:
    async def play(app: Top, seen: Any, press: Any) -> None:
        await seen("0 used")
        await press("p")
        await seen("PAUSED")
        with orders.checkout():
            assert "1 used" not in "\n".join(lines_of(app))
            await press("p")
            await seen("1 used")

    orders.checkout().release()
    on_screen(manager, (80, 24), play)


def test_a_server_that_has_gone_is_said(manager: PoolManager, orders: Pool[Thing]) -> None:
    async def play(app: Top, seen: Any, press: Any) -> None:
        await seen("orders")
        manager.shutdown()
        await seen("no server runs")
        orders.checkout().release()
        await seen("has taken over")

    orders.checkout().release()
    on_screen(manager, (80, 24), play)


def test_rates_are_what_was_counted_between_two_looks(
    manager: PoolManager, orders: Pool[Thing]
) -> None:
    orders.checkout().release()
    watch = Watch()
    watch.take(manager.stats(), 100.0)
    for _ in range(8):
        orders.checkout().release()
    watch.take(manager.stats(), 104.0)
    assert watch.rate("orders", "checkouts") == 2.0
    assert watch.rate("orders", "opened") == 0.0
    assert watch.longest_wait("orders") is None


def test_the_longest_wait_is_seen(manager: PoolManager, orders: Pool[Thing]) -> None:
    watch = Watch()
    leases = [orders.checkout() for _ in range(3)]
    watch.take(manager.stats(), 100.0)
    waiting = threading.Thread(target=lambda: orders.checkout(timeout=30).release())
    waiting.start()
    wait_until(lambda: orders.stats()["waiting"], "a waiting thread")
    for lease in leases:
        lease.release()
    waiting.join()
    watch.take(manager.stats(), 101.0)
    assert (watch.longest_wait("orders") or 0) >= 0.001


def test_in_a_real_terminal(manager: PoolManager, orders: Pool[Thing]) -> None:
    """The keys of a user, and a terminal that is as it was before."""
    orders.checkout().release()
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "mppool", "top", "shop", "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as top:
        said = b""

        def has_said(what: bytes) -> bool:
            nonlocal said
            while select.select([ours], [], [], 0.05)[0]:
                said += os.read(ours, 65536)
            return what in said

        wait_until(lambda: has_said(b"orders"), "the pool on the screen")
        os.write(ours, b"q")
        wait_until(lambda: has_said(b"\x1b[?1049l") and top.poll() is not None, "the end")
        assert top.returncode == 0
        assert b"Traceback" not in said
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_without_textual_it_says_what_to_install(
    manager: PoolManager, orders: Pool[Thing], tmp_path: Path
) -> None:
    orders.checkout().release()
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'textual' else find(name, *a)\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "mppool", "top", "shop"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=40,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert "pip install 'mppool[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_ends_the_tables_cleanly(manager: PoolManager, orders: Pool[Thing]) -> None:
    orders.checkout().release()
    command = [sys.executable, "-m", "mppool", "top", "shop", "--interval", "0.05", "--plain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as top:
        assert top.stdout is not None
        assert top.stdout.readline()
        top.send_signal(signal.SIGINT)
        _, said = top.communicate(timeout=20)
        assert (top.returncode, said) == (0, b"")

"""`close` is for this process, `close(everywhere=True)` for all of them until somebody declares the pool once more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool import InProcessManager, Pool, PoolClosed, PoolManager
from tests.helpers import wait_until
from tests.processes.options.scene import Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def test_a_close_is_for_this_process_alone(declare: Declare, hire: Hire, scene: Scene) -> None:
    pool = declare(max_size=3)
    one, two = hire(pool, 2)
    for colleague in (one, two):
        colleague.do("checkout")
    two.do("release")
    two.do("call", "close")
    assert scene.count("close") == 1  # what lay idle there is closed when `close` returns
    with pytest.raises(PoolClosed):
        two.do("checkout", timeout=0)
    assert one.do("use") == 0
    one.do("release")
    one.do("checkout")
    with pool.checkout(timeout=20):
        pass
    assert pool.stats()["closed"] is False


def test_what_is_out_in_a_process_that_closed_is_closed_on_release(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(max_size=2)
    lease = pool.checkout()
    pool.close()
    assert lease.resource.number == 0
    with pytest.raises(PoolClosed):
        pool.checkout()
    assert scene.count("close") == 0
    lease.release()
    assert scene.count("close") == 1


def test_a_close_ends_the_waits_of_this_process_and_of_no_other(
    declare: Declare, hire: Hire
) -> None:
    pool = declare(max_size=1)
    one, two = hire(pool, 2)
    one.do("checkout")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            pool.checkout(timeout=60)
        except PoolClosed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    two.tell("checkout", timeout=60)
    wait_until(lambda: pool.stats()["waiting"] == 2, "both to wait")
    pool.close()
    thread.join(20)
    assert len(raised) == 1
    one.do("release")
    assert two.answer() >= 0


def test_who_has_closed_a_pool_opens_nothing_for_min_size(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=4, min_size=2)
    (one,) = hire(pool, 1)
    one.do("call", "wait_ready")
    pool.wait_ready()
    pool.close()
    one.do("call", "reset")
    one.do("call", "wait_ready")
    mine = [event for event in scene.events("open") if event[2] == os.getpid()]
    wait_until(lambda: pool.stats()["size"] == 2, "two to be open")
    assert {entry["pid"] for entry in pool.stats()["resources"]} == {one.pid}
    assert len([event for event in scene.events("open") if event[2] == os.getpid()]) == len(mine)


def test_a_declaration_after_the_close_opens_it_again_in_this_process(declare: Declare) -> None:
    pool = declare(max_size=2)
    pool.checkout().release()
    pool.close()
    again = declare(max_size=2)
    for one in (pool, again):
        with one.checkout(timeout=20) as thing:
            assert thing.number == 1


@pytest.mark.parametrize("who", ["the one that closed it", "another", "one born later"])
def test_a_declaration_after_a_close_everywhere_opens_it_for_all(
    manager: PoolManager, declare: Declare, hire: Hire, who: str
) -> None:
    pool = declare(max_size=3)
    one, two = hire(pool, 2)
    for colleague in (one, two):
        colleague.do("checkout")
        colleague.do("release")
    one.do("call", "close", everywhere=True)
    wait_until(lambda: pool._local.closed_everywhere or not pool._local.inventory.session, "word")
    for colleague in (one, two):
        wait_until(lambda c=colleague: _refused(c), "the word to arrive")  # type: ignore[misc]
    assert pool.stats()["closed"] is True
    opener: Any = {"the one that closed it": one, "another": two}.get(who)
    if opener is None:
        (opener,) = hire(pool, 1)
    opener.do("declare")
    assert opener.do("checkout", "again", timeout=10) >= 0
    assert pool.stats()["closed"] is False
    for colleague in (one, two):
        assert wait_until(lambda c=colleague: _served(c), "it is open for all")  # type: ignore[misc]


def _refused(colleague: Any) -> bool:
    try:
        colleague.do("checkout", "probe", timeout=5)
    except PoolClosed:
        return True
    colleague.do("release", "probe")
    return False


def _served(colleague: Any) -> bool:
    try:
        colleague.do("checkout", "after", timeout=1)
    except PoolClosed:
        return False
    colleague.do("release", "after")
    return True


def test_a_pool_that_was_closed_everywhere_stays_closed_under_the_next_server(
    manager: PoolManager, declare: Declare, hire: Hire
) -> None:
    pool = declare(max_size=3)
    (one,) = hire(pool, 1)
    one.do("checkout")
    pool.checkout().release()
    one.do("call", "close", everywhere=True)
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: manager.server_pid not in (None, server), "the next server")
    with pytest.raises(PoolClosed):
        one.do("checkout", "more", timeout=5)
    with pytest.raises(PoolClosed):
        pool.checkout(timeout=5)


CODE = """
import sys
from mppool import PoolManager
pool = PoolManager("test", linger=30).pool("orders", list, max_size=2)
with pool.checkout(timeout=10):
    print("served")
if sys.argv[1:] == ["closes"]:
    pool.close(everywhere=True)
"""


def test_the_generation_that_comes_after_a_close_is_served(manager: PoolManager) -> None:
    """Fault r16: a tidy end closed the pool for all generations that came after."""
    for arguments in (["closes"], ["closes"], []):
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_an_in_process_manager_closes_and_opens_again() -> None:
    manager = InProcessManager()
    pool = manager.pool("p", list, max_size=1)
    for everywhere in (False, True):
        pool.checkout(timeout=5).release()
        pool.close(everywhere=everywhere)
        with pytest.raises(PoolClosed):
            pool.checkout(timeout=5)
        pool = manager.pool("p", list, max_size=1)
        with pool.checkout(timeout=5):
            pass
    manager.shutdown()


def test_what_is_granted_in_the_instant_of_a_close_is_not_lost(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout with a timeout of 0 had its grant, and found the pool closed: the slot was nobody's for ever."""
    pool = declare(max_size=1)
    link: Any = pool._local.member.link
    ask = link.ask_at_once

    def ask_and_close(event: Any) -> Any:
        answer = ask(event)
        pool.close()
        return answer

    pool.wait_ready(10)  # attached
    monkeypatch.setattr(link, "ask_at_once", ask_and_close)
    with pytest.raises(PoolClosed):
        pool.checkout(timeout=0)
    monkeypatch.undo()
    declare(max_size=1)
    with pool.checkout(timeout=10):
        assert pool.stats()["size"] == 1

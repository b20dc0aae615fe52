"""Elsewhere than on Linux, and with MPPOOL_ALONE=1: each process pools for itself alone, and says so once.

Tested in processes from which everything was removed that only Linux has.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mppool import CheckoutTimeout, ConfigurationError, PoolError, PoolManager
from tests.helpers import ROOT, Fork, run_python, wait_until

# The standard library is imported first: it has its own ways of finding out where it is.
IMPORTED_BEFORE = """
import asyncio, builtins, concurrent.futures, ctypes, io, logging, multiprocessing.managers, os, pathlib, pickle, random
import secrets, select, selectors, signal, socket, subprocess, sys, tempfile, threading, time, traceback, uuid, weakref
import filelock, msgspec
asyncio.new_event_loop().close()  # since Python 3.14 only this decides which loops there are
"""
WITHOUT_LINUX = """
LINUX = {
    os: ["eventfd", "eventfd_read", "eventfd_write", "EFD_CLOEXEC", "EFD_NONBLOCK", "pidfd_open", "sched_getaffinity",
         "posix_fallocate", "memfd_create", "sched_setaffinity"],
    select: ["epoll", "EPOLLIN", "EPOLLOUT"],
    socket: ["SO_PEERCRED", "SOCK_CLOEXEC", "SOCK_NONBLOCK"],
}
WINDOWS_TOO = {
    os: ["register_at_fork", "fork", "geteuid", "getuid", "getsid", "posix_spawn", "posix_spawnp", "pread", "pwrite",
         "mkfifo", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "sched_yield", "waitpid", "WNOHANG"],
    select: ["poll", "POLLIN", "POLLOUT"],
    socket: ["AF_UNIX"],
    signal: ["pthread_sigmask", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP", "SIGQUIT"],
}
def remove(names):
    for module, gone in names.items():
        for name in gone:
            if hasattr(module, name):
                delattr(module, name)
remove(LINUX)
for name in ("fcntl", "resource", "pwd", "grp") if sys.argv[-1] == "win32" else ():
    sys.modules[name] = None
if sys.argv[-1] == "win32":
    pair, unix = socket.socketpair, socket.AF_UNIX  # asyncio's own, which there is a pair over TCP
    socket.socketpair = lambda: pair(unix)
    remove(WINDOWS_TOO)
def no_proc(function):
    def opened(path, *arguments, **keywords):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return function(path, *arguments, **keywords)
    return opened
builtins.open, io.open, os.open, os.stat = map(no_proc, (open, io.open, os.open, os.stat))
selectors.DefaultSelector = selectors.SelectSelector
sys.platform = sys.argv[-1]
"""
USE = """
class Thing:
    is_open = True
    def close(self): self.is_open = False

from mppool import CheckoutTimeout, InProcessManager, PoolManager
manager = InProcessManager() if sys.argv[1] == "in" else PoolManager("shop")
again = manager if sys.argv[1] == "in" else PoolManager("shop")
pool = manager.pool("orders", Thing, max_size=2, min_size=1, max_idle=0.2)
assert pool.wait_ready(20)
with pool.checkout(timeout=20) as one, pool.checkout(timeout=20):
    try:
        again.pool("orders", Thing, max_size=2, min_size=1, max_idle=0.2).checkout(timeout=0.05)
    except CheckoutTimeout:
        pass
    else:
        raise AssertionError("more than max_size")

done = []
def work():
    for _ in range(50):
        with pool.checkout(timeout=20) as thing:
            assert thing.is_open
    done.append(1)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 8

async def waits():
    async with pool.acheckout(timeout=20) as thing:
        assert thing.is_open
async def crowd():
    await asyncio.gather(*(waits() for _ in range(10)))
asyncio.run(crowd())

end = time.monotonic() + 20
while pool.stats()["size"] > 1:  # the background thread closes what is idle
    assert time.monotonic() < end
    time.sleep(0.01)
pool.resize(max_size=3); pool.reset()
assert pool.drain(5) == 0
stats = manager.stats()
assert stats["server_pid"] == os.getpid() == manager.server_pid
assert manager.address is None
manager.start(); manager.connect(); manager.join()
with manager:
    with pool.checkout(timeout=20):
        pass
manager.shutdown()
if sys.argv[1] == "pool":
    assert manager.drain("orders", 5) == 0
    assert type(pickle.loads(pickle.dumps(manager))).__name__ == "PoolManager"
left = [thread.name for thread in threading.enumerate() if thread.name.startswith("mppool-timers")]
print("worked")
"""


@pytest.mark.parametrize("kind", ["in", "pool"])
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_it_works_without_what_only_linux_has(runtime_dir: Path, kind: str, system: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED_BEFORE + WITHOUT_LINUX + USE, kind, system],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout == "worked\n", done.stdout + done.stderr
    warned = f"processes share pools on Linux only, and this is {system}"
    assert done.stderr.count(warned) == (kind == "pool"), done.stderr
    assert len(done.stderr.splitlines()) == (kind == "pool"), done.stderr
    assert list(runtime_dir.iterdir()) == []


IMPORT_ALL = """
import importlib, pkgutil, traceback
import mppool
for module in pkgutil.walk_packages(mppool.__path__, "mppool."):
    wing = module.name.split(".")[1]
    own = (
        "mppool.rendezvous.claim", "mppool.rendezvous.detached", "mppool.rendezvous.world", "mppool.hosting.__main__",
    )  # fmt: skip
    if wing in ("server", "cli", "__main__") or module.name in own:  # Linux's own
        continue
    try:
        importlib.import_module(module.name)
    except (AttributeError, ImportError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if os.path.dirname(mppool.__file__) in where:  # else it lacks what it integrates
            print(module.name, traceback.format_exc())
    except Exception as error:
        assert type(error).__module__.startswith("django."), error
"""


def test_every_module_but_the_servers_can_be_imported() -> None:
    """On either system, each in a child: what others have made is imported once, for that takes seconds."""
    extras = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import gunicorn, pyodbc, psycopg, pytest, sqlalchemy, django.db, mssql_python\n"
        "import azure.identity, azure.storage.blob.aio, azure.core.pipeline.transport\n"
        "import sqlalchemy.ext.asyncio, sqlalchemy.dialects, django.db.backends.postgresql.base\n"
    )
    in_a_child = f"""
def import_all(system):
    if os.fork():
        assert os.wait()[1] == 0
        return
    status = 1
    try:
        sys.argv = ["", system]
        exec({WITHOUT_LINUX + IMPORT_ALL!r}, globals())
        print(system, "is through", flush=True)
        status = 0
    finally:
        os._exit(status)

import_all("darwin")
import_all("win32")
"""
    done = run_python(IMPORTED_BEFORE + extras + in_a_child, timeout=100)
    assert done.stdout == "darwin is through\nwin32 is through\n"


def test_mppool_alone_does_the_same_on_linux(runtime_dir: Path) -> None:
    done = run_python(
        IMPORTED_BEFORE + "sys.argv = ['', 'pool', 'linux']" + USE,
        environment={"MPPOOL_ALONE": "1"},
    )
    assert done.stdout == "worked\n"
    assert done.stderr.count("$MPPOOL_ALONE is set") == 1
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize("value", ["", "0", "no", "false"])
def test_mppool_alone_can_be_said_not_to_be(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MPPOOL_ALONE", value)
    assert PoolManager("shop").server_pid is None


class Shop(PoolManager):
    """An application's own manager."""


@pytest.fixture
def alone(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> PoolManager:
    monkeypatch.setenv("MPPOOL_ALONE", "1")
    return Shop(runtime_dir.name)


def test_a_forked_child_has_pools_of_its_own(alone: PoolManager) -> None:
    pool = alone.pool("orders", object, max_size=1)

    def child() -> int:
        with pool.checkout(timeout=20):
            return int(pool.stats()["in_use"])

    with pool.checkout(timeout=5):
        assert Fork(child).result() == 1
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0)


def test_what_has_no_place_without_a_server_says_so(alone: PoolManager) -> None:
    assert isinstance(alone, Shop)
    with pytest.raises(ConfigurationError, match="for itself alone"):
        alone.get_server()
    with pytest.raises(ConfigurationError, match="for itself alone"):
        _ = alone.directory
    with pytest.raises(ConfigurationError, match="initializer"):
        alone.start(initializer=print)
    with pytest.raises(PoolError, match="no pool 'orders'"):
        alone.drain("orders")
    assert "alone" in repr(alone)
    assert isinstance(pickle.loads(pickle.dumps(alone)), PoolManager)


def test_managers_of_one_name_are_one_and_their_thread_ends_with_them(alone: PoolManager) -> None:
    first, second = (PoolManager(alone.name).pool("orders", object, max_size=1) for _ in range(2))
    with first.checkout(timeout=5), pytest.raises(CheckoutTimeout):
        second.checkout(timeout=0)
    alone.shutdown()
    wait_until(
        lambda: not any(f"timers-{alone.name}" in thread.name for thread in threading.enumerate()),
        "the end of the background thread",
    )


EVENTLET = """
import eventlet; eventlet.monkey_patch()
from mppool import ConfigurationError, InProcessManager, PoolManager
for manager in (PoolManager("shop"), InProcessManager()):
    try:
        manager.pool("orders", object).checkout(timeout=5)
    except ConfigurationError as error:
        print(error)
"""


def test_eventlet_is_told_at_the_first_checkout(runtime_dir: Path) -> None:
    said = run_python("import warnings; warnings.simplefilter('ignore')\n" + EVENTLET).stdout
    assert said.count("does not work where eventlet has patched the standard library") == 2
    assert list(runtime_dir.iterdir()) == []

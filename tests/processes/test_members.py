"""A process is not always one member, and a member may end before its process does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mppool import CheckoutTimeout, PoolManager
from mppool.ids import own_process, witness_name
from mppool.rendezvous import liveness
from mppool.rendezvous.locator import ServerLocator
from tests.helpers import Fork, is_alive, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]
Pythons = Callable[..., "subprocess.Popen[str]"]

_TAKE_TWO = """
import os, sys
from mppool import PoolManager
from tests.processes.witness import SessionRecipe
pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(sys.argv[1]), max_size=2)
leases = [pool.checkout(timeout=20) for _ in range(2)]
print("taken", flush=True)
sys.stdin.readline()
"""


def _say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


# --- two members in one process --------------------------------------------------------------------------

_TWO_COPIES = """
import sys, time
from mppool import PoolManager, CheckoutTimeout
from tests.processes.witness import SessionRecipe
path = sys.argv[1]
pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=2)
first = [pool.checkout(timeout=20) for _ in range(2)]
for name in [name for name in sys.modules if name.split(".")[0] in ("mppool", "tests")]:
    del sys.modules[name]
from mppool import PoolManager as Second, CheckoutTimeout as TooLate
from tests.processes.witness import SessionRecipe as Again
other = Second("t", linger=0.0).pool("p", Again(path), max_size=2)
try: other.checkout(timeout=0.5)
except TooLate: pass
else: raise AssertionError("over the cap")
burnt = time.process_time()
time.sleep(1.0)
assert time.process_time() - burnt < 0.3, "they throw each other out"
first.pop().release()
second = [other.checkout(timeout=20)]
second[0].resource.ask("x"); first[0].resource.ask("x")
first.pop().release()
second.append(other.checkout(timeout=20))
for lease in second: lease.release()
assert len(pool.stats()["processes"]) == 2
again = [pool.checkout(timeout=20) for _ in range(2)]
for lease in again: lease.release()
"""


def test_two_copies_of_the_library_in_one_process_share_one_cap(
    runtime_dir: Path, witness: Witness, python: Pythons
) -> None:
    process = python(_TWO_COPIES, str(witness.path))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert witness.figures()["peak"] <= 2


def test_two_managers_that_only_meet_at_first_use_share_one_cap(
    runtime_dir: Path, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", f"{runtime_dir}-first")
    early = PoolManager("t", linger=0.0).pool("p", witness.recipe(), max_size=1)
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(runtime_dir))
    late = PoolManager("t", linger=0.0).pool("p", witness.recipe(), max_size=1)
    for one, other in ((early, late), (late, early)):
        with one.checkout(timeout=20) as session:
            with pytest.raises(CheckoutTimeout):
                other.checkout(timeout=0.2)
            session.ask("unharmed")
    assert witness.figures()["peak"] == 1


def test_two_copies_go_on_with_exact_books_after_the_servers_death(
    runtime_dir: Path, witness: Witness, python: Pythons, manager: PoolManager
) -> None:
    code = _TWO_COPIES.replace(
        "first.pop().release()\nsecond = [",
        "import os, signal\nos.kill(Second('t').server_pid, signal.SIGKILL)\nfirst.pop().release()\nsecond = [",
    )
    process = python(code, str(witness.path))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert witness.figures()["peak"] <= 2


# --- exec ------------------------------------------------------------------------------------------------


def test_what_a_process_held_is_free_soon_after_it_execs(
    manager: PoolManager, witness: Witness, python: Pythons
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    with pool.checkout(timeout=20):
        pass  # the server is ours
    pool._local.member.close_idle()
    holder = python(_TAKE_TWO + "os.execv('/bin/sleep', ['sleep', '60'])\n", str(witness.path))
    _hear(holder, "taken")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0)
    _say(holder)
    leases = [pool.checkout(timeout=10) for _ in range(2)]
    assert is_alive(holder.pid)
    for lease in leases:
        lease.resource.ask("x")
        lease.release()
    assert witness.figures()["peak"] <= 2


def test_what_a_process_held_is_free_although_it_execs_while_no_server_lives(
    manager: PoolManager, witness: Witness, python: Pythons
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    holder = python(_TAKE_TWO + "os.execv('/bin/sleep', ['sleep', '60'])\n", str(witness.path))
    _hear(holder, "taken")
    server = manager.server_pid
    assert server is not None
    os.kill(holder.pid, signal.SIGSTOP)  # it must not attach to the next server
    _say(holder)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server is dead")
    os.kill(holder.pid, signal.SIGCONT)
    wait_until(
        lambda: Path(f"/proc/{holder.pid}/comm").read_text().strip() == "sleep", "it has execed"
    )
    leases = [pool.checkout(timeout=20) for _ in range(2)]
    assert is_alive(holder.pid)
    for lease in leases:
        lease.release()
    assert witness.figures()["peak"] <= 2


def test_a_program_that_restarts_itself_by_exec_goes_on(
    manager: PoolManager, witness: Witness, python: Pythons
) -> None:
    code = """
import os, sys
from mppool import PoolManager
from tests.processes.witness import SessionRecipe
pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(sys.argv[1]), max_size=2)
leases = [pool.checkout(timeout=20) for _ in range(2)]
round_ = int(os.environ.get("ROUND", "0"))
if round_ < 3:
    os.environ["ROUND"] = str(round_ + 1)
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[sys.orig_argv.index("-c") + 1], sys.argv[1]])
print("restarted", flush=True)
for lease in leases: lease.release()
"""
    process = python(code, str(witness.path))
    output = process.communicate(timeout=60)[0]
    assert output.strip().endswith("restarted"), output
    assert witness.figures()["peak"] <= 2


def test_a_stopped_process_and_one_that_has_lost_its_channel_keep_what_they_hold(
    manager: PoolManager, witness: Witness, python: Pythons
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    holder = python(
        _TAKE_TWO.replace(
            'print("taken"',
            'pool._local.member.link.session.outgoing.channel.sock.shutdown(2); os.kill(os.getpid(), 19); print("taken"',
        ),
        str(witness.path),
    )
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{holder.pid}/status").read_text(), "stopped")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=3)
    os.kill(holder.pid, signal.SIGCONT)
    _hear(holder, "taken")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=1)
    _say(holder)
    with pool.checkout(timeout=10):
        pass
    assert witness.figures()["peak"] <= 2


def test_only_an_open_descriptor_of_this_very_process_is_a_witness(manager: PoolManager) -> None:
    pool = manager.pool("p", object, max_size=1)
    with pool.checkout(timeout=20):
        pass
    witness = manager._link.session.witness
    process = witness.process()
    assert liveness.is_witnessed(process)
    (descriptor,) = witness.descriptors()
    os.close(descriptor)
    assert not liveness.is_witnessed(process)
    other = os.memfd_create(witness_name(process.member + 2))
    assert not liveness.is_witnessed(process)
    witness.show()
    assert liveness.is_witnessed(process)
    os.close(other)

    def child() -> tuple[bool, bool]:
        with pool.checkout(timeout=20):
            mine = manager._link.session.witness.process()
            return liveness.is_witnessed(mine), mine.member != process.member

    assert Fork(child).result() == (True, True)
    assert own_process().member == 0


def test_a_child_takes_a_manager_to_meet_where_its_parent_does(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a manager of one directory would be taken for one of another that has its name."""
    monkeypatch.delenv("MPPOOL_RUNTIME_DIR")
    locator = ServerLocator("elsewhere", None, 0.0)
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(runtime_dir))
    locator.paths()
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(tmp_path))
    assert Fork(locator.likely_directory).result() == str(runtime_dir)

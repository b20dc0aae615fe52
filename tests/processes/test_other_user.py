"""A process that becomes another user after it has used a pool, and what an interpreter within it may do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mppool import CheckoutTimeout, ConfigurationError, PoolManager
from tests.helpers import Fork, run_python

Forks = Callable[..., Fork]

_NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_that_becomes_another_user_keeps_its_attachment(
    runtime_dir: Path, fork: Forks
) -> None:
    """What needs the runtime directory again is refused, and the error says why."""

    def child() -> str:
        manager = PoolManager("t", linger=0.0)
        pool = manager.pool("p", object, max_size=2)
        lease = pool.checkout(timeout=20)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        lease.release()
        leases = [pool.checkout(timeout=20) for _ in range(2)]
        with pytest.raises(CheckoutTimeout, match="2 resources exist"):
            pool.checkout(timeout=0)
        for lease in leases:
            lease.release()
        with manager.pool("q", object, max_size=1).checkout(timeout=20):
            pass
        with pytest.raises(ConfigurationError) as refused:
            pool.stats()
        return str(refused.value)

    text = fork(child).result()
    assert "belongs to user 0" in text
    assert "as user 65534" in text
    assert "MPPOOL_RUNTIME_DIR" in text


_WITHIN = """
try:
    from mppool import PoolManager, PoolError
    pool = PoolManager("t", linger=0.0).pool("p", list, max_size=2)
    pool.checkout(timeout=20)
except ImportError as error:  # first: PoolError has no value then
    text = f"cannot be imported in a subinterpreter: {error}"
except PoolError as error:
    text = str(error)
else:
    text = "a lease"
import os
with open(os.environ["ANSWER"], "w") as file:
    file.write(text)
"""

_AROUND = f"""
import sys
from mppool import PoolManager
pool = PoolManager("t", linger=0.0).pool("p", list, max_size=2)
with pool.checkout(timeout=20):
    pass
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
within = interpreters.create()
interpreters.run_string(within, "import sys; sys.path[:] = " + repr(sys.path))
interpreters.run_string(within, {_WITHIN!r})
interpreters.destroy(within)
with pool.checkout(timeout=20):
    print("unharmed")
"""


def test_an_isolated_subinterpreter_is_refused_and_the_process_goes_on(
    runtime_dir: Path, tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    done = run_python(_AROUND, environment={"ANSWER": str(answer)})
    assert done.stdout.split() == ["unharmed"]
    assert "subinterpreter" in answer.read_text()

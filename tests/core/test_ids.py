"""Names of processes and grants; errors."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys

import pytest

from mppool import errors
from mppool.ids import ProcessId, birth_of, grant_number, own_process, sha256_of
from tests.core.clock import ManualClock


def test_a_process_is_its_pid_and_its_birth() -> None:
    assert own_process() == ProcessId(os.getpid(), birth_of(os.getpid()) or 0)
    assert own_process() != ProcessId(os.getpid(), 1)
    assert str(ProcessId(7, 9)) == "7@9"


def test_a_process_that_does_not_exist_has_no_birth() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert birth_of(child.pid) is None


def test_a_name_with_blanks_and_brackets_does_not_confuse_the_birth(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ["S", *(str(n) for n in range(4, 60))]
    text = f"7 (a) S 1 (b c) {' '.join(fields)}"
    monkeypatch.setattr("mppool.ids.Path.read_bytes", lambda *a, **k: text.encode())
    assert birth_of(7) == 22


def test_grant_numbers_grow_with_the_epoch() -> None:
    assert grant_number(2, 1) > grant_number(1, 2**32 - 1)
    assert grant_number(1, 2) == grant_number(1, 1) + 1


ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_travels(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what to do")))
    assert type(copy) is kind
    assert str(copy) == "what to do"
    assert isinstance(copy, errors.PoolError)


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.CheckoutTimeout, TimeoutError)
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.ConfigurationMismatch, errors.ConfigurationError)


def test_a_manual_clock_goes_forward_only() -> None:
    clock = ManualClock(5.0)
    assert clock.advance(2.0) == clock() == 7.0
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1.0)


@pytest.mark.parametrize("data", [b"", b"key\0identity", b"x" * 10_000])
def test_a_hash_is_the_same_for_every_release(data: bytes) -> None:
    """Names of sockets, and keys in journals, are told by it."""
    assert sha256_of(data) == hashlib.sha256(data).hexdigest()

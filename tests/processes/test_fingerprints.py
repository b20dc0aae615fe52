"""What other processes are told of a connection string: a hash, with a secret that each runtime directory has."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mppool import ConfigurationError, PoolManager, ServerUnavailable
from mppool.recipe import Recipe
from mppool.rendezvous.paths import fingerprint_secret, manager_paths
from tests.helpers import Fork, run_python
from tests.server.clients import in_children


class Named(Recipe[object]):
    """Opens anything; its fingerprint is well known."""

    def open(self, opening: object) -> object:
        return object()

    def fingerprint(self) -> str:
        return "well-known"


def told(manager: PoolManager) -> bytes:
    """What the journal says of an open resource."""
    with manager.pool("orders", Named(), max_size=1).checkout(timeout=20):
        return (manager.directory / "journal").read_bytes()


def keys_in(journal: bytes) -> set[bytes]:
    return {journal[at : at + 34] for at in range(len(journal)) if journal[at : at + 2] == b"k:"}


def test_each_directory_has_a_secret_of_its_own(runtime_dir: Path) -> None:
    here, there = (
        told(PoolManager("shop", runtime_dir=runtime_dir / name, linger=0.0)) for name in "ab"
    )
    assert b"well-known" not in here + there
    assert len(keys_in(here)) == len(keys_in(there)) == 1
    assert keys_in(here) != keys_in(there)


def test_all_processes_of_a_directory_use_the_same(
    manager: PoolManager, fork: Callable[..., Fork]
) -> None:
    key = keys_in(told(manager))
    assert keys_in(fork(told, manager).result()) == key
    code = """
from mppool import PoolManager
from tests.processes.test_fingerprints import keys_in, told
print(*keys_in(told(PoolManager("t", linger=0.0))))
"""
    assert run_python(code).stdout.strip() == str(*key)


def test_a_crowd_agrees_on_one_secret(runtime_dir: Path) -> None:
    paths = manager_paths("shop", runtime_dir)
    assert len(set(in_children(12, fingerprint_secret, paths))) == 1
    file = runtime_dir / "secret,fingerprints"
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(runtime_dir)) == ["secret,fingerprints", "shop"]


def test_a_damaged_secret_is_made_again(runtime_dir: Path) -> None:
    paths = manager_paths("shop", runtime_dir)
    fingerprint_secret(paths)
    (runtime_dir / "secret,fingerprints").write_bytes(b"short")
    assert len(fingerprint_secret(paths)) == 32


def test_a_secret_that_cannot_be_had_is_said(runtime_dir: Path) -> None:
    (runtime_dir / "secret,fingerprints").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"secret,fingerprints cannot be had.*MPPOOL_RUN"):
        fingerprint_secret(manager_paths("shop", runtime_dir))


def test_declaring_reads_and_makes_nothing(manager: PoolManager, runtime_dir: Path) -> None:
    manager.pool("orders", Named(), max_size=1)
    manager.pool("orders", Named(), max_size=1)
    assert list(runtime_dir.iterdir()) == []


def test_a_full_disk_passes_and_nobody_is_told_to_choose_another_directory(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by tests/simulation: it was a ConfigurationError.
    def fail(_path: Path) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    pool = manager.pool("orders", Named(), max_size=1)
    with monkeypatch.context() as full:
        full.setattr("mppool.rendezvous.paths._make_secret", fail)
        with pytest.raises(ServerUnavailable, match=r"run out of something.*No space left"):
            pool.checkout(timeout=20)
    pool.checkout(timeout=20).release()

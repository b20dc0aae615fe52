"""The journal: what one server writes, the next one knows; damage is noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mppool.core.decisions import Erase, Record, RecordPool
from mppool.ids import GrantNumber, ProcessId
from mppool.server.journal import (
    GROWTH_RECORDS,
    HEADER_BYTES,
    LONG_KEY_MARK,
    RECORD_BYTES,
    Journal,
    JournalError,
)

HOLDER = ProcessId(4711, 123456)


def record(number: int, key: str = "fingerprint\0acct:alice") -> Record:
    return Record("pool", key, GrantNumber(number), HOLDER, 3)


def reopened(path: Path, **world: object) -> Journal:
    journal = Journal(path, **world)  # type: ignore[arg-type]
    journal.close()
    return journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_the_next_server_knows_what_was_written(path: Path) -> None:
    journal = Journal(path)
    journal.write(RecordPool("pool", 7, 1, 3, False))
    journal.write(RecordPool("pool", None, 0, 4, True))
    for number in range(1, 200):
        journal.write(record(number))
    for number in range(1, 199):
        journal.write(Erase(GrantNumber(number)))
    journal.close()
    following = reopened(path)
    assert following.epoch == journal.epoch + 1
    assert not following.torn
    assert following.pools == [RecordPool("pool", None, 0, 4, True)]
    assert [(slot.number, slot.key, slot.process, slot.generation) for slot in following.slots] == [
        (199, "fingerprint\0acct:alice", HOLDER, 3)
    ]


def test_places_are_used_again(path: Path) -> None:
    journal = Journal(path)
    for number in range(1, 10_000):
        journal.write(record(number))
        journal.write(Erase(GrantNumber(number)))
    journal.close()
    assert path.stat().st_size == HEADER_BYTES + GROWTH_RECORDS * RECORD_BYTES


def test_erasing_what_was_never_written_is_harmless(path: Path) -> None:
    journal = Journal(path)
    journal.write(record(4))
    journal.write(Erase(GrantNumber(5)))
    journal.close()
    following = reopened(path)
    assert ([slot.number for slot in following.slots], following.torn) == ([4], False)


def test_a_key_that_does_not_fit_is_remembered_by_its_hash(path: Path) -> None:
    journal = Journal(path)
    journal.write(record(1, "k" * 5000))
    journal.write(record(2, "ü" * 400))
    journal.write(record(3, "k" * 300))
    journal.close()
    keys = {slot.number: slot.key for slot in reopened(path).slots}
    assert keys[GrantNumber(1)].startswith(f"{LONG_KEY_MARK}\0")
    assert keys[GrantNumber(2)].startswith(f"{LONG_KEY_MARK}\0")
    assert keys[GrantNumber(3)] == "k" * 300


@pytest.mark.parametrize("world", [{"boot": "another"}, {"pid_namespace": 1}])
def test_another_boot_or_pid_namespace_makes_it_void(path: Path, world: dict[str, object]) -> None:
    journal = Journal(path, **world)  # type: ignore[arg-type]
    journal.write(record(1))
    journal.close()
    following = reopened(path)
    assert (following.slots, following.torn) == ([], False)
    assert following.epoch == journal.epoch + 1


def written(path: Path) -> bytes:
    journal = Journal(path)
    journal.write(RecordPool("pool", 7, 1, 3, False))
    for number in range(1, 5):
        journal.write(record(number))
    journal.close()
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_damaged_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal"
    content = bytearray(written(path))
    used = HEADER_BYTES + 5 * RECORD_BYTES
    place = data.draw(st.integers(0, used - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    following = reopened(path)
    # What is behind the payload of a block is not looked at.
    whole = len(following.slots) == 4 and len(following.pools) == 1
    assert following.torn or whole
    # It stays torn for the server after, until it is settled.
    again = Journal(path)
    assert again.torn == following.torn
    again.settled()
    again.close()
    assert not reopened(path).torn


@pytest.mark.parametrize(
    "size", [0, 1, 100, HEADER_BYTES, HEADER_BYTES + 100, HEADER_BYTES + RECORD_BYTES]
)
def test_a_file_that_was_cut_off_is_torn(path: Path, size: int) -> None:
    path.write_bytes(written(path)[:size])
    assert reopened(path).torn


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_is_torn(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("j") / "journal"
    path.write_bytes(garbage)
    following = Journal(path)
    assert following.torn
    following.write(record(1))
    following.settled()
    following.close()
    assert [slot.number for slot in reopened(path).slots] == [1]


def test_a_damaged_record_does_not_hide_the_others(path: Path) -> None:
    content = bytearray(written(path))
    content[HEADER_BYTES + RECORD_BYTES + 20] ^= 1
    path.write_bytes(content)
    following = reopened(path)
    assert following.torn
    assert len(following.slots) == 3


def test_a_failed_write_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.write(record(1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(JournalError, match="No space left"):
            journal.write(record(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for number in range(3, 2 + GROWTH_RECORDS):
            journal.write(record(number))
        with pytest.raises(JournalError, match="cannot grow"):
            journal.write(record(1000))
    journal.close()
    following = reopened(path)
    assert not following.torn
    numbers = {slot.number for slot in following.slots}
    assert numbers == {1, *range(3, 2 + GROWTH_RECORDS)}


def test_a_name_that_does_not_fit_is_refused(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match="does not fit"):
        journal.write(RecordPool("p" * 1000, 1, 0, 0, False))
    journal.close()


def test_a_removed_file_is_put_back_whole(path: Path) -> None:
    journal = Journal(path)
    journal.write(record(1))
    path.unlink()
    assert not journal.is_in_place()
    journal.write(record(2))
    journal.put_back()
    assert journal.is_in_place()
    journal.write(record(3))
    journal.close()
    assert {slot.number for slot in reopened(path).slots} == {1, 2, 3}


def test_it_clears_only_its_own_file(path: Path) -> None:
    journal = Journal(path)
    path.unlink()
    path.write_bytes(b"another server's")
    journal.clear()
    assert path.read_bytes() == b"another server's"
    journal.close()


def blocks_of(path: Path) -> int:
    return path.stat().st_blocks


@pytest.mark.parametrize("end", ["cleared", "another boot", "damaged"])
def test_what_is_forgotten_keeps_its_blocks(path: Path, end: str) -> None:
    journal = Journal(path, boot="a", pid_namespace=1)
    for number in range(1, 100):
        journal.write(record(number))
    if end == "cleared":
        journal.clear()
    journal.close()
    if end == "damaged":
        with path.open("r+b") as file:
            file.write(b"damaged")
    before = blocks_of(path)
    after = Journal(path, boot="b" if end == "another boot" else "a", pid_namespace=1)
    assert after.slots == []
    assert after.header.capacity >= GROWTH_RECORDS
    assert blocks_of(path) == before
    for number in range(1, GROWTH_RECORDS + 1):
        after.write(record(number))
    assert blocks_of(path) == before
    after.close()
    assert len(Journal(path, boot=after.header.boot, pid_namespace=1).slots) == GROWTH_RECORDS


def test_a_symbolic_link_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match="symbolic"):
        Journal(path)

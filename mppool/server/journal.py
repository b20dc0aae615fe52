"""What the next server must know, kept in place on disk: who holds which slot, and the state of pools.

    block 0     header: magic, CRC, then Header in MessagePack
    others      one record each, RECORD_BYTES: CRC, length, then a Record, RecordPool or RecordBudget in MessagePack;
                all zero where free

A change is one `pwrite` of one record, so a killed server leaves every record either old or new: the
kernel keeps what a dead process wrote. Only a machine that stops can lose it, and then all holders are
dead as well (the header names the boot). So nothing is ever fsynced.

Whatever does not check out makes the journal `torn`. It stays torn, also for the server after the next
one, until `settled` is called: everybody who might hold something has been heard.
"""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from pathlib import Path

import msgspec

from mppool.core.decisions import Erase, JournalDecision, Record, RecordBudget, RecordPool
from mppool.core.events import Remembered
from mppool.ids import GrantNumber, sha256_of
from mppool.rendezvous.world import boot_id, may_be_one_boot, pid_namespace_inode

log = logging.getLogger(__name__)

MAGIC = b"MPPOOLJ1"
FORMAT = 1
RECORD_BYTES = 512
HEADER_BYTES = 512
GROWTH_RECORDS = 64
LONG_KEY_MARK = "mppool-long-key"
"""A key that does not fit a record is remembered as this, NUL, and its hash.

It counts against the cap like any other; only `max_per_identity` cannot recognize it, and only until its
process attaches, whose inventory brings the key itself.
"""

_CHECKED = struct.Struct("<IH")  # CRC over length and payload, length of payload
_PAYLOAD_BYTES = RECORD_BYTES - _CHECKED.size
_FREE = bytes(RECORD_BYTES)
_EPOCH_ZERO = (
    1_600_000_000  # September 2020: keeps epochs below 2**31, and grant numbers below 2**63
)


class Header(msgspec.Struct, array_like=True):
    """Whose journal this is. New fields may only ever be added at the end, with a default.

    capacity: records that the file has room for, so that a truncated file is noticed.
    unsettled: the contents were torn once, and not everybody has been heard since.
    """

    format: int
    boot: str
    pid_namespace: int
    epoch: int
    nonce: bytes
    capacity: int
    unsettled: bool


class JournalError(OSError):
    """A change could not be written down."""


class Journal:
    """The open journal of the one server that holds the alive lock. Not thread-safe: the loop owns it.

    The mutable state is: where each record stands, which places are free, and the header.
    """

    def __init__(
        self,
        path: Path,
        *,
        last_epoch: int = 0,
        boot: str | None = None,
        pid_namespace: int | None = None,
    ) -> None:
        """Continue the journal at `path`, or begin one. OSError if that is impossible.

        last_epoch: of the last server, as far as it is known from elsewhere.
        """
        self.path = path
        self.pools: list[RecordPool] = []
        self.budgets: list[RecordBudget] = []
        self.slots: list[Remembered] = []
        self.torn = False
        self.existed = path.exists()
        self._places: dict[GrantNumber | str, int] = {}
        self._free: list[int] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Record | RecordPool | RecordBudget)
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            self.header = self._continue(
                last_epoch, boot or boot_id(), pid_namespace or pid_namespace_inode()
            )
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def epoch(self) -> int:
        """Number of this server's reign: one more than that of the server before it."""
        return self.header.epoch

    # --- reading what the last server left ---------------------------------------------------------------

    def _continue(self, last_epoch: int, boot: str, pid_namespace: int) -> Header:
        """Read what is there, then write the header of the new epoch."""
        content = self._read_all()
        old = _read_header(content)
        # By the clock where nothing is known: also then no earlier server's numbers come again.
        epoch = (old.epoch if old else last_epoch or max(0, int(time.time()) - _EPOCH_ZERO)) + 1
        epoch = max(epoch, last_epoch + 1)
        if not self.existed:
            capacity = 0
        elif old is None:
            self._tear("its header is damaged")
            capacity = self._wipe(content)
        elif not may_be_one_boot(old.boot, boot) or old.pid_namespace != pid_namespace:
            log.info("journal: void, it is of another boot or pid namespace")
            capacity = self._wipe(content)
        else:
            capacity = self._read_records(content, old)
            self.torn = self.torn or old.unsettled
        header = Header(FORMAT, boot, pid_namespace, epoch, os.urandom(16), capacity, self.torn)
        # Under the old header damaged records would be found again, so they go only after it is replaced.
        self._write_header(header)
        for place in self._free:
            if content[_offset(place) : _offset(place + 1)] != _FREE:
                self._write_at(place, _FREE)
        return header

    def _read_all(self) -> bytes:
        chunks = []
        offset = 0
        while chunk := os.pread(self._descriptor, 1 << 20, offset):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    def _wipe(self, content: bytes) -> int:
        """Make all records free; the room there is. The blocks stay, because the disk may be full by now."""
        room = max(0, (len(content) - HEADER_BYTES) // RECORD_BYTES)
        for place in range(room):
            self._write_at(place, _FREE)
        os.ftruncate(self._descriptor, _offset(room) if room else 0)
        self._free = list(range(room - 1, -1, -1))
        return room

    def _read_records(self, content: bytes, header: Header) -> int:
        """Take over all records that check out; returns the room there is now."""
        present = max(0, (len(content) - HEADER_BYTES) // RECORD_BYTES)
        if present < header.capacity:
            self._tear(f"{header.capacity - present} of {header.capacity} records are cut off")
        damaged = 0
        for place in range(present):
            block = content[_offset(place) : _offset(place + 1)]
            if block == _FREE:
                self._free.append(place)
                continue
            try:
                self._take_over(self._decoder.decode(_checked_payload(block)), place)
            except (ValueError, msgspec.MsgspecError) as error:
                log.debug("journal: record %d: %s", place, error)
                damaged += 1
                self._free.append(place)
        if damaged:
            self._tear(f"{damaged} of {present} records are damaged")
        self._free.reverse()  # low places first
        return present

    def _take_over(self, item: Record | RecordPool | RecordBudget, place: int) -> None:
        identity = _identity(item)
        if identity in self._places:
            raise ValueError(f"{identity!r} is there twice")
        self._places[identity] = place
        if isinstance(item, RecordPool):
            self.pools.append(item)
        elif isinstance(item, RecordBudget):
            self.budgets.append(item)
        else:
            self.slots.append(
                Remembered(
                    item.pool, item.key, item.number, item.process, item.generation, item.budget
                )
            )

    def _tear(self, reason: str) -> None:
        self.torn = True
        log.warning(
            "journal: torn, %s; nothing new is opened until every living process has attached",
            reason,
        )

    # --- writing -------------------------------------------------------------------------------------------

    def write(self, decision: JournalDecision) -> None:
        """Carry out one decision. JournalError if it could not be written; then nothing has changed."""
        if type(decision) is Erase:
            self._erase(decision.number)
            return
        assert not isinstance(decision, Erase)
        block = self._block(decision)
        identity = _identity(decision)
        place = self._places.get(identity)
        if type(decision) is Record and decision.instead_of in self._places:
            # One write: a server that is killed in between leaves the one or the other.
            place = self._places[decision.instead_of]
            self._write_at(place, block)
            del self._places[decision.instead_of]
            self._places[identity] = place
        elif place is None:
            if not self._free:
                self._grow()
            place = self._free[-1]
            self._write_at(place, block)
            self._free.pop()
            self._places[identity] = place
        else:
            self._write_at(place, block)

    def _erase(self, number: GrantNumber) -> None:
        place = self._places.get(number)
        if place is None:
            return  # never written: its Record failed
        self._write_at(place, _FREE)
        del self._places[number]
        self._free.append(place)

    def _block(self, item: Record | RecordPool | RecordBudget) -> bytes:
        payload = self._encoder.encode(item)
        if len(payload) > _PAYLOAD_BYTES and isinstance(item, Record):
            digest = sha256_of(item.key.encode())
            payload = self._encoder.encode(
                msgspec.structs.replace(item, key=f"{LONG_KEY_MARK}\0{digest}")
            )
        if len(payload) > _PAYLOAD_BYTES:
            raise JournalError(
                f"a record of {len(payload)} bytes does not fit; shorten the names of pool and budget"
            )
        return _checked(payload).ljust(RECORD_BYTES, b"\0")

    def _grow(self) -> None:
        """Make room, reserving the blocks now: a full disk is noticed before anybody depends on it."""
        capacity = self.header.capacity
        try:
            os.posix_fallocate(self._descriptor, _offset(capacity), GROWTH_RECORDS * RECORD_BYTES)
        except OSError as error:
            raise JournalError(error.errno, f"the journal cannot grow: {error.strerror}") from error
        self._write_header(msgspec.structs.replace(self.header, capacity=capacity + GROWTH_RECORDS))
        self._free.extend(range(capacity + GROWTH_RECORDS - 1, capacity - 1, -1))

    def settled(self) -> None:
        """Everybody who might hold something has been heard: the journal is whole again."""
        if self.header.unsettled:
            self._write_header(msgspec.structs.replace(self.header, unsettled=False))
        self.torn = False

    def unsettled(self) -> None:
        """Not everybody who might hold something has been heard, and the next server must know."""
        self.torn = True
        if not self.header.unsettled:
            self._write_header(msgspec.structs.replace(self.header, unsettled=True))

    def _write_header(self, header: Header) -> None:
        block = MAGIC + _checked(self._encoder.encode(header))
        self._pwrite(block.ljust(HEADER_BYTES, b"\0"), 0)
        self.header = header

    def _write_at(self, place: int, block: bytes) -> None:
        self._pwrite(block, _offset(place))

    def _pwrite(self, block: bytes, offset: int) -> None:
        try:
            written = os.pwrite(self._descriptor, block, offset)
        except OSError as error:
            raise JournalError(
                error.errno, f"the journal cannot be written: {error.strerror}"
            ) from error
        if written != len(block):
            raise JournalError(f"only {written} of {len(block)} bytes of the journal were written")

    # --- the file itself -------------------------------------------------------------------------------------

    def is_in_place(self) -> bool:
        """Whether the path still leads to the file that is being written."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def put_back(self) -> None:
        """Write the whole journal to its path again, after somebody removed it."""
        content = self._read_all()
        beside = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(
            beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.replace(beside, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor

    def clear(self) -> None:
        """Nobody holds anything: forget everything. Only if the file is still this one.

        It stays because of its blocks: the next server must have them although the disk is full.
        """
        if not self.is_in_place():
            return
        capacity = min(self.header.capacity, GROWTH_RECORDS)
        self._write_header(msgspec.structs.replace(self.header, capacity=capacity, unsettled=False))
        for place in self._places.values():
            self._write_at(place, _FREE)
        self._places.clear()
        os.ftruncate(self._descriptor, _offset(capacity))

    def remove(self) -> None:
        """The next server begins another one. Only if the file is still this one."""
        if self.is_in_place():
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write no more; the file stays as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _offset(place: int) -> int:
    return HEADER_BYTES + place * RECORD_BYTES


def _identity(item: Record | RecordPool | RecordBudget) -> GrantNumber | str:
    """What a record is found by: a slot's grant, a pool's name, that of a budget (which no pool can have)."""
    if isinstance(item, RecordBudget):
        return f"budget {item.budget}"
    return item.pool if isinstance(item, RecordPool) else item.number


def _checked(payload: bytes) -> bytes:
    """A payload behind its checksum and length."""
    length = struct.pack("<H", len(payload))
    return struct.pack("<I", zlib.crc32(payload, zlib.crc32(length))) + length + payload


def _checked_payload(block: bytes) -> bytes:
    """The payload of a block, or ValueError."""
    crc, length = _CHECKED.unpack_from(block)
    end = _CHECKED.size + length
    if end > len(block) or zlib.crc32(block[4:end]) != crc:
        raise ValueError("the checksum does not fit")
    return block[_CHECKED.size : end]


def _read_header(content: bytes) -> Header | None:
    if not content.startswith(MAGIC):
        return None
    try:
        payload = _checked_payload(content[len(MAGIC) : HEADER_BYTES])
        header = msgspec.msgpack.decode(payload, type=Header)
    except (ValueError, struct.error, msgspec.MsgspecError) as error:
        log.debug("journal: header: %s", error)
        return None
    return header if header.format == FORMAT else None

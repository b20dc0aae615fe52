"""The simulated machine: processes, files, and the system calls of `os` and `fcntl`."""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import os as real_os
import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.simulation import streams
from tests.simulation.files import Files, files
from tests.simulation.processes import TICKS_PER_S, Process
from tests.simulation.scheduler import Scheduler, current_thread, monotonic, point
from tests.simulation.streams import Counter, PidDescriptor, Stream, connected, refused, wait_for

_FLOCK = struct.Struct("hhqqi4x")
_NAMESPACE = 4026531836
LOWEST_PID = 101


class Kernel:
    """One machine. Its settings are drawn by the world; see faults.py.

    room: bytes that may lie unread in a connection. backlog: of connects. delay: of what is sent.
    """

    def __init__(self, scheduler: Scheduler, chance: random.Random) -> None:
        self.scheduler, self.chance = scheduler, chance
        scheduler.kernel = self  # type: ignore[attr-defined]
        self.processes: dict[int, Process] = {}
        self._all: list[Process] = []
        self.is_running = True
        self.streams: dict[Stream, None] = {}
        self.files = Files(self)
        self.room, self.backlog = 200_000, 4096
        self.longest_delay, self.delayed = 0.0, 0.0
        self.knows_peerpidfd = True
        self.most_pids = 1 << 22
        self._pid = LOWEST_PID - 1
        self.sockets = self.last_birth = 0
        self.cpus = 1
        self.deaths: Callable[[Process], None] = lambda process: None
        self.trouble: Callable[[str], None] = lambda text: None
        self.spawn: Callable[[Process, list[str], dict[str, str]], None] | None = None
        self.boot = "00000000-0000-4000-8000-000000000001"

    def delay(self) -> float:
        """How long what is sent now is under way."""
        if self.delayed and self.chance.random() < self.delayed:
            return self.chance.random() ** 3 * self.longest_delay
        return 0.0

    def new_process(
        self,
        name: str,
        main: Callable[[], Any],
        *,
        parent: Process | None = None,
        namespace: int = 0,
    ) -> Process:
        """A process that ends when main returns. parent: it was forked from that one."""
        self.most_pids = max(self.most_pids, LOWEST_PID + 2 * len(self.processes))
        while True:
            self._pid = self._pid + 1 if self._pid < self.most_pids else LOWEST_PID
            if self._pid not in self.processes:
                break
        process = Process(self, self._pid, name, namespace)
        if parent is not None:
            process.inherit(parent)
        return self._begin(process, main)

    def exec(self, process: Process, main: Callable[[], Any]) -> Process:
        """The process runs another program; to the simulation that is another Process with its pid and birth."""
        heir = Process(self, process.pid, process.name, process.namespace, process.birth)
        process.exec(heir)
        return self._begin(heir, main)

    def _begin(self, process: Process, main: Callable[[], Any]) -> Process:
        self.processes[process.pid] = process
        self._all.append(process)

        def run() -> None:
            main()
            process.exit()

        process.start_thread(run, "MainThread")
        return process

    def died(self, process: Process) -> None:
        self.processes.pop(process.pid, None)
        self.deaths(process)

    def end(self) -> None:
        """The world has ended. The collector cannot see into a frame that is not run, so all are left."""
        self.is_running = False
        for process in self._all:
            for thread in list(process.threads):
                if thread:
                    thread.throw()
            process.threads.clear()

    # --- /proc ---------------------------------------------------------------------------------------------

    def procfs(self, path: str) -> bytes | None:
        """The text of a file of /proc; None: it is another file."""
        if not path.startswith("/proc/"):
            return None
        if path.endswith("boot_id"):
            return self.boot.encode()
        process = self._of(path)
        if process is None:
            raise refused(errno.ENOENT)
        state = "T" if process.is_stopped else "S"
        fields = [str(process.pid), "(python)", state, *["0"] * 18, str(process.birth), "0"]
        return " ".join(fields).encode()

    def _of(self, path: str) -> Process | None:
        who = path.split("/")[2]
        process: Process | None
        if who == "self":
            process = current_thread().process
        else:
            process = self.seen(int(who))
        return process

    def seen(self, pid: int) -> Process | None:
        """The process with this pid, as far as the running one can see it."""
        process = self.processes.get(pid)
        return (
            process if process and process.namespace == current_thread().process.namespace else None
        )


def _process() -> Process:
    process: Process = current_thread().process
    return process


# --- os --------------------------------------------------------------------------------------------------


def getpid() -> int:
    process = getattr(current_thread(), "process", None)
    return 0 if process is None else int(process.pid)


def open_(path: Any, flags: int, mode: int = 0o777) -> int:
    point()
    process = _process()
    process.check_for_descriptor()  # first: where there is none to be had, no file is made
    return process.open(files().open(path, flags, mode))


def close(descriptor: int) -> None:
    process = getattr(current_thread(), "process", None)
    if process is not None and process.kernel.is_running:
        process.close(descriptor)


def pread(descriptor: int, length: int, offset: int) -> bytes:
    point()
    return bytes(_process().get(descriptor).node.data[offset : offset + length])


def pwrite(descriptor: int, data: Any, offset: int) -> int:
    point()
    written = files().write(_process().get(descriptor), data, offset)
    point()
    return written


def read(descriptor: int, length: int) -> bytes:
    point()
    thing = _process().get(descriptor)
    if isinstance(thing, Stream):
        while True:
            try:
                return thing.receive(length)
            except BlockingIOError:
                wait_for([thing], None)
    data = bytes(thing.node.data[thing.offset : thing.offset + length])
    thing.offset += len(data)
    return data


def write(descriptor: int, data: Any) -> int:
    point()
    thing = _process().get(descriptor)
    if isinstance(thing, Stream):
        return thing.send(data)
    if thing.flags & real_os.O_APPEND:
        thing.offset = len(thing.node.data)
    written = files().write(thing, data, thing.offset)
    thing.offset += written
    return written


def ftruncate(descriptor: int, length: int) -> None:
    files().truncate(_process().get(descriptor), length)


def posix_fallocate(descriptor: int, offset: int, length: int) -> None:
    point()
    files().allocate(_process().get(descriptor), offset, length)


def stat(path: Any, *, follow_symlinks: bool = True) -> Any:
    point()
    if real_os.fspath(path) == "/proc/self/ns/pid":
        return SimpleNamespace(st_ino=_NAMESPACE + _process().namespace)
    return files().node(path).result()


def fstat(descriptor: int) -> Any:
    thing = _process().get(descriptor)
    node = getattr(thing, "node", None)
    return SimpleNamespace(st_dev=2, st_ino=id(thing)) if node is None else node.result()


def listdir(path: str) -> list[str]:
    point()
    if path.startswith("/proc/"):
        process = _process().kernel._of(path)
        if process is None:
            raise refused(errno.ENOENT)
        return [str(number) for number in process.descriptors]
    return list(files().node(path).entries)


def readlink(path: str) -> str:
    me = getattr(current_thread(), "process", None)
    process = None if me is None else me.kernel._of(path)
    number = int(path.rpartition("/")[2])
    if process is None or number not in process.descriptors:
        raise refused(errno.ENOENT)
    return str(getattr(process.descriptors[number], "path", "anon_inode:"))


def access(path: str, mode: int) -> bool:
    if path.startswith("/proc/self/task/"):
        number = int(path.rpartition("/")[2])
        return any(thread.number == number for thread in _process().threads)
    return files().find(path) is not None


def pipe() -> tuple[int, int]:
    process = _process()
    reading, writing = connected(process.kernel, process, process)
    return process.open(reading), process.open(writing)


def eventfd(value: int, flags: int = 0) -> int:
    return _process().open(Counter())


def eventfd_write(descriptor: int, value: int) -> None:
    process = getattr(current_thread(), "process", None)
    if process is not None and process.kernel.is_running:
        counter = process.get(descriptor)
        counter.value += value
        counter.changed()


def eventfd_read(descriptor: int) -> int:
    counter = _process().get(descriptor)
    if not counter.value:
        raise refused(errno.EAGAIN)
    value, counter.value = counter.value, 0
    return int(value)


class _Memory:
    """A memory file."""

    def __init__(self, name: str) -> None:
        self.path = f"/memfd:{name} (deleted)"
        self.references = 0

    def close(self, process: Process) -> None:
        return


def memfd_create(name: str, flags: int = 0) -> int:
    return _process().open(_Memory(name))


def pidfd_open(pid: int, flags: int = 0) -> int:
    point()
    process = _process().kernel.seen(pid)
    if process is None:
        raise refused(errno.ESRCH)
    return _process().open(PidDescriptor(process))


def posix_spawnp(
    program: str, arguments: list[str], environment: dict[str, str], **more: Any
) -> int:
    point()
    process = _process()
    assert process.kernel.spawn is not None
    process.kernel.spawn(process, arguments, more["file_actions"])
    return 1


class _File:
    """What os.fdopen gives: to write, once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> _File:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def write(self, data: bytes) -> int:
        return write(self._descriptor, data)

    def __exit__(self, *_: object) -> None:
        close(self._descriptor)


def mkstemp(prefix: str, dir: Any) -> tuple[int, str]:  # noqa: A002  # the standard library's name
    path = f"{real_os.fspath(dir)}/{prefix}{_process().kernel.chance.getrandbits(40):x}"
    return open_(path, real_os.O_RDWR | real_os.O_CREAT | real_os.O_EXCL, 0o600), path


def _nothing(*_: Any, **__: Any) -> None:
    return


def os_module(bytes_of_chance: Callable[[int], bytes]) -> Any:
    passed_on = (
        "fspath",
        "fsencode",
        "fsdecode",
        "strerror",
        "path",
        "devnull",
        "sep",
        "stat_result",
    )
    return streams._Module(
        real_os, **{name: getattr(real_os, name) for name in passed_on},
        getpid=getpid, getppid=lambda: 1, geteuid=lambda: 1000, getuid=lambda: 1000, environ={},
        open=open_, close=close, pread=pread, pwrite=pwrite, read=read, write=write,
        ftruncate=ftruncate, posix_fallocate=posix_fallocate, stat=stat, fstat=fstat,
        listdir=listdir, readlink=readlink, access=access, pipe=pipe,
        unlink=lambda path: files().unlink(path), link=lambda a, b, **_: files().link(a, b),
        replace=lambda a, b: files().replace(a, b), utime=lambda path: files().node(path) and None,
        eventfd=eventfd, eventfd_write=eventfd_write, eventfd_read=eventfd_read,
        memfd_create=memfd_create, pidfd_open=pidfd_open, posix_spawnp=posix_spawnp,
        waitpid=lambda pid, flags: (point(), (pid, 0))[1], urandom=bytes_of_chance,
        fdopen=lambda descriptor, mode: _File(descriptor), set_inheritable=_nothing,
        set_blocking=_nothing, sched_yield=point, register_at_fork=_nothing,
        sched_getaffinity=lambda pid: set(range(_process().kernel.cpus)),
    )  # fmt: skip


# --- fcntl, filelock -------------------------------------------------------------------------------------


def _flock(descriptor: int, operation: int) -> None:
    point()
    file = _process().get(descriptor)
    if file.node.locked_by not in (None, file):
        raise refused(errno.EAGAIN)
    file.node.locked_by = file


def _lockf(descriptor: int, operation: int, length: int = 0, start: int = 0) -> None:
    _process().get(descriptor).node.places[start] = _process()


def _fcntl(descriptor: int, command: int, argument: Any) -> Any:
    if command == real_fcntl.F_DUPFD_CLOEXEC:
        return _process().open(_process().get(descriptor))
    assert command == real_fcntl.F_GETLK
    kind, whence, start, length, _ = _FLOCK.unpack(argument)
    places = _process().get(descriptor).node.places
    end = start + length if length else float("inf")
    if not any(start <= place < end for place, owner in places.items() if owner is not _process()):
        kind = real_fcntl.F_UNLCK
    return _FLOCK.pack(kind, whence, start, length, 0)


fcntl_module = streams._Module(real_fcntl, flock=_flock, lockf=_lockf, fcntl=_fcntl)


class Timeout(TimeoutError):
    """See filelock.Timeout."""


class FileLock:
    """See filelock.FileLock: with a timeout of 0, which is all that is used."""

    def __init__(self, path: Any, **_: Any) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def is_locked(self) -> bool:
        return self._descriptor >= 0

    def acquire(self, timeout: float) -> None:
        descriptor = open_(self._path, real_os.O_RDWR | real_os.O_CREAT, 0o600)
        try:
            _flock(descriptor, real_fcntl.LOCK_EX | real_fcntl.LOCK_NB)
        except BlockingIOError:
            close(descriptor)
            raise Timeout from None
        self._descriptor = descriptor

    def release(self) -> None:
        close(self._descriptor)
        self._descriptor = -1


filelock_module = SimpleNamespace(FileLock=FileLock, Timeout=Timeout, __path__=["/simulated"])
__all__ = ["TICKS_PER_S", "Kernel", "monotonic"]

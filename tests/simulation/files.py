"""Simulated files: directories, regular files, sockets' names, locks; a disk that may be full, or fail."""

from __future__ import annotations

import errno
import os as real_os
import posixpath
import stat
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import current_thread, here, point
from tests.simulation.streams import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.kernel import Kernel
    from tests.simulation.processes import Process

BLOCK = 512
USER = 1000


class Node:
    """A file, a directory, or a socket's name. written_at: where the last write began, for what tears it."""

    def __init__(self, number: int, kind: int, mode: int) -> None:
        self.number, self.kind, self.mode = number, kind, mode
        self.links = 1
        self.data = bytearray()
        self.blocks = 0
        self.entries: dict[str, Node] = {}
        self.listener: Any = None
        self.locked_by: Any = None
        self.places: dict[int, Process] = {}
        self.written_at = -1

    def result(self) -> real_os.stat_result:
        return real_os.stat_result(
            (self.kind | self.mode, self.number, 1, self.links, USER, USER, len(self.data), 0, 0, 0)
        )


class OpenFile:
    """What a descriptor of a file leads to."""

    def __init__(self, node: Node, path: str, flags: int) -> None:
        self.node, self.path, self.flags = node, path, flags
        self.offset = 0
        self.references = 0

    def close(self, process: Process) -> None:
        if self.node.locked_by is self:
            self.node.locked_by = None

    def let_go(self, process: Process) -> None:
        """A process has closed a descriptor of it: that takes its record locks, whatever else it has open."""
        self.node.places = {
            place: owner for place, owner in self.node.places.items() if owner is not process
        }


class Files:
    """One file system. is_full: no block can be had. failing: how likely a write to the journal fails."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._numbers = 1
        self.root = Node(1, stat.S_IFDIR, 0o755)
        self.is_full = False
        self.failing = 0.0
        for path in ("/run", "/tmp"):
            self.make(path, stat.S_IFDIR, 0o1777)

    # --- names ---------------------------------------------------------------------------------------------

    def find(self, path: Any) -> Node | None:
        node: Node | None = self.root
        for part in real_os.fspath(path).strip("/").split("/"):
            if part:
                if node is None or node.kind != stat.S_IFDIR:
                    return None
                node = node.entries.get(part)
        return node

    def node(self, path: Any) -> Node:
        found = self.find(path)
        if found is None:
            raise refused(errno.ENOENT)
        return found

    def _parent(self, path: Any) -> tuple[Node, str]:
        above, name = posixpath.split(real_os.fspath(path))
        parent = self.node(above)
        return parent, name

    def make(self, path: Any, kind: int, mode: int) -> Node:
        parent, name = self._parent(path)
        if name in parent.entries:
            raise refused(errno.EEXIST)
        self._numbers += 1
        node = parent.entries[name] = Node(self._numbers, kind, mode)
        return node

    def unlink(self, path: Any) -> None:
        parent, name = self._parent(path)
        if name not in parent.entries:
            raise refused(errno.ENOENT)
        parent.entries.pop(name).links -= 1

    def link(self, path: Any, other: Any) -> None:
        node = self.node(path)
        parent, name = self._parent(other)
        if name in parent.entries:
            raise refused(errno.EEXIST)
        parent.entries[name] = node
        node.links += 1

    def replace(self, path: Any, other: Any) -> None:
        node = self.node(path)
        parent, name = self._parent(other)
        before = parent.entries.get(name)
        self.unlink(path)
        if before is not None:
            before.links -= 1
        parent.entries[name] = node
        node.links += 1

    def listener_at(self, path: str) -> Any:
        listener = self.node(path).listener
        if listener is None:
            raise refused(errno.ECONNREFUSED)
        return listener

    def make_socket(self, path: str) -> None:
        if self.find(path) is not None:
            raise refused(errno.EADDRINUSE)
        self.make(path, stat.S_IFSOCK, 0o755)

    # --- contents ------------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777) -> OpenFile:
        node = self.find(path)
        if node is None:
            if not flags & real_os.O_CREAT:
                raise refused(errno.ENOENT)
            node = self.make(path, stat.S_IFREG, mode)
        elif flags & real_os.O_EXCL:
            raise refused(errno.EEXIST)
        if flags & real_os.O_TRUNC:
            node.data.clear()
        return OpenFile(node, real_os.fspath(path), flags)

    def write(self, file: OpenFile, data: Any, offset: int) -> int:
        node, data = file.node, bytes(data)
        is_journal = file.path.endswith("journal")
        if is_journal and self.failing and self.kernel.chance.random() < self.failing:
            raise refused(errno.EIO)
        self._take_blocks(node, offset + len(data))
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.written_at = offset
        return len(data)

    def _take_blocks(self, node: Node, length: int) -> None:
        blocks = -(-length // BLOCK)
        if blocks > node.blocks:
            if self.is_full:
                raise refused(errno.ENOSPC)
            node.blocks = blocks

    def allocate(self, file: OpenFile, offset: int, length: int) -> None:
        self._take_blocks(file.node, offset + length)
        if len(file.node.data) < offset + length:
            file.node.data.extend(bytes(offset + length - len(file.node.data)))

    def truncate(self, file: OpenFile, length: int) -> None:
        data = file.node.data
        if len(data) < length:
            data.extend(bytes(length - len(data)))
        del data[length:]
        file.node.blocks = min(file.node.blocks, -(-length // BLOCK))


def files() -> Files:
    found: Files = current_thread().process.kernel.files
    return found


class Path:
    """See pathlib.Path, of which it has what is used, and makes less of it: half of all system calls make one."""

    __slots__ = ("_text",)

    def __init__(self, path: Any) -> None:
        self._text = real_os.fspath(path)

    def __fspath__(self) -> str:
        return self._text

    __str__ = __fspath__

    def __truediv__(self, name: Any) -> Path:
        return Path(f"{self._text}/{real_os.fspath(name)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Path) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: Path) -> bool:
        return self._text < other._text

    @property
    def name(self) -> str:
        return posixpath.basename(self._text)

    @property
    def parent(self) -> Path:
        return Path(posixpath.dirname(self._text))

    def with_name(self, name: str) -> Path:
        return self.parent / name

    def stat(self, *, follow_symlinks: bool = True) -> real_os.stat_result:
        point()
        return files().node(self).result()

    lstat = stat

    def exists(self) -> bool:
        return files().find(self) is not None

    def is_dir(self) -> bool:
        node = files().find(self)
        return node is not None and node.kind == stat.S_IFDIR

    def mkdir(self, mode: int = 0o777) -> None:
        point()
        files().make(self, stat.S_IFDIR, mode)

    def chmod(self, mode: int) -> None:
        files().node(self).mode = mode

    def unlink(self, missing_ok: bool = False) -> None:
        point()
        try:
            files().unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, other: Any) -> None:
        point()
        files().replace(self, other)
        point()

    def iterdir(self) -> Iterator[Path]:
        point()
        return iter([self / name for name in files().node(self).entries])

    def glob(self, pattern: str) -> Iterator[Path]:
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def absolute(self) -> Path:
        return self

    def open(self, mode: str = "r") -> Any:
        raise refused(errno.ENOENT)  # of the server's log, which nobody writes here

    def read_bytes(self) -> bytes:
        point()
        text = here.scheduler.kernel.procfs(real_os.fspath(self))
        return bytes(files().node(self).data) if text is None else text

    def read_text(self, encoding: str = "ascii", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

"""One name, one kind of pool: for threads, or for event loops. Processes that mean different things by a name are told so.

What they open has different keys, so nothing could get into the wrong hands. But they would take each other's slots away, and
each would see figures of the other's resources.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from mppool.core.events import Declaration
from mppool.ids import ProcessId


class Kinds:
    """Which processes mean what by the name of one pool.

    State: `_agreed`, the declarations that count, all of one kind, and `set_aside`, those of another kind, each with the
    instant in which it was made. The first process counts, for as long as one process of that kind lives. After the end
    of a server, a process that holds something came first.
    """

    def __init__(self, holders: Collection[ProcessId]) -> None:
        """holders: the processes that hold slots of the pool, always as it is now."""
        self._holders = holders
        self._agreed: dict[ProcessId, tuple[Declaration, float]] = {}
        self.set_aside: dict[ProcessId, tuple[Declaration, float]] = {}

    def take(self, process: ProcessId, declaration: Declaration, now: float) -> list[ProcessId]:
        """A process declares the pool; the processes whose declarations do not count from now on, itself perhaps."""
        self.forget(process)
        if not declaration.kind:
            return []
        made = (declaration, now - declaration.age)
        if not self._comes_first(process, declaration):
            self.set_aside[process] = made
            return [process]
        displaced = [] if self._agrees(declaration) else list(self._agreed)
        for other in displaced:
            self.set_aside[other] = self._agreed.pop(other)
        self._agreed[process] = made
        return displaced

    def forget(self, process: ProcessId) -> None:
        """The process is gone, or does not use the pool any more."""
        self._agreed.pop(process, None)
        self.set_aside.pop(process, None)

    def admitted(self, process: ProcessId, now: float) -> Declaration | None:
        """The declaration of a process that was set aside, where it would count now."""
        if process not in self.set_aside:
            return None
        declaration, made_at = self.set_aside[process]
        if not self._comes_first(process, declaration):
            return None
        return msgspec.structs.replace(declaration, age=now - made_at)

    def why_not(self, process: ProcessId) -> str:
        """Why a process gets nothing; "" where it may ask."""
        if process not in self.set_aside:
            return ""
        mine = self.set_aside[process][0].kind
        other = next(iter(self._agreed))
        theirs = self._agreed[other][0].kind
        return (
            f"process {other.pid} has declared this name with {_CALLS[theirs]}, and process {process.pid} with "
            f"{_CALLS[mine]}; use another name for one of them. This process is served when no process of the other "
            "kind is left"
        )

    def _agrees(self, declaration: Declaration) -> bool:
        return all(one.kind == declaration.kind for one, _ in self._agreed.values())

    def _comes_first(self, process: ProcessId, declaration: Declaration) -> bool:
        """Whether a declaration counts: all mean the same, or this process alone has something to lose."""
        if self._agrees(declaration):
            return True
        return process in self._holders and not any(one in self._holders for one in self._agreed)


_CALLS = {
    "threads": "manager.pool, for resources that block",
    "loops": "manager.apool, for those of an event loop",
}

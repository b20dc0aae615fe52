"""Shows to the server that this member is there: a process that execs another program lives on without it."""

from __future__ import annotations

import os

from mppool.ids import ProcessId, own_process, witness_name

_MEMBER_BITS = 62  # a whole number that every reader of msgpack takes


class Witness:
    """A descriptor that is open for as long as this member may hold something, under a name that nobody else has.

    `show` and `hide` belong to the owner of the session's lock for attaching. Any thread may ask for `process`, also two at the
    same time, before there is one: all of them must get the same. `_processes` has at most one entry, which is made by
    `setdefault`, because that is atomic.
    """

    def __init__(self) -> None:
        self._processes: dict[None, ProcessId] = {}
        self._descriptor = -1

    def process(self) -> ProcessId:
        """Those whom the books must know."""
        known = self._processes.get(None)
        if known is None:
            own = own_process()
            chance = int.from_bytes(os.urandom(8), "big") >> (64 - _MEMBER_BITS)
            number = chance << 1 | hasattr(os, "memfd_create")
            known = self._processes.setdefault(None, ProcessId(own.pid, own.birth, number))
        return known

    def show(self) -> None:
        """Be seen. OSError where no descriptor can be had.

        Again before every attachment: a program may have closed descriptors that it did not know.
        """
        process = self.process()
        name = witness_name(process.member)
        if not process.member & 1 or self.is_shown:
            return
        try:
            self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        except (
            PermissionError
        ):  # seccomp: then only the death of the process tells that the member is gone
            self._processes[None] = ProcessId(process.pid, process.birth, process.member & ~1)

    def hide(self) -> None:
        """Be seen no more: this member holds nothing, and no server has to wait for what it says."""
        is_shown, number = self.is_shown, self._descriptor
        self._descriptor = -1  # first: its number may be somebody else's as soon as it is closed
        if is_shown:
            os.close(number)

    @property
    def is_shown(self) -> bool:
        """Whether its descriptor is open."""
        known = self._processes.get(None)
        return known is not None and _leads_to(self._descriptor, witness_name(known.member))

    def descriptors(self) -> list[int]:
        """What a forked child must close."""
        return [self._descriptor] if self.is_shown else []

    def __del__(self) -> None:
        self.hide()


def _leads_to(descriptor: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{name} ")
    except OSError:
        return False

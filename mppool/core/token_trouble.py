"""Whose fetches of one token have failed, where that says nothing about the issuer.

An old secret, no descriptors, a proxy of its own, a dead event loop: that process waits, and another one is
appointed at once. All wait only when each that asks has failed.
"""

from __future__ import annotations

from mppool.ids import ProcessId

REMEMBERED_S = 3600.0
"""The trouble of a process is forgotten so long after its pause is over."""


class _Trouble:
    """until: when the process may try again. serious: it was a failure, and not a mere interruption."""

    __slots__ = ("error", "serious", "until")

    def __init__(self, error: str, until: float, serious: bool) -> None:
        self.error = error
        self.until = until
        self.serious = serious


class Troubles:
    """The processes whose last fetch of this token failed; the one that failed last stands last."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[ProcessId, _Trouble] = {}

    def note(self, process: ProcessId, error: str, until: float, serious: bool) -> None:
        """The process failed just now."""
        self._of.pop(process, None)
        self._of[process] = _Trouble(error, until, serious)

    def is_over(self, process: ProcessId) -> None:
        """The process has brought a token."""
        self._of.pop(process, None)

    def pause_of(self, process: ProcessId, now: float) -> tuple[str, float] | None:
        """Its error and the seconds for which it is not to try again; None: it may."""
        trouble = self._of.get(process)
        if trouble is None or trouble.until <= now:
            return None
        return trouble.error, trouble.until - now

    def is_suspect(self, process: ProcessId) -> bool:
        """Whether its last fetch failed by its own fault, so that nobody else should wait for the next."""
        trouble = self._of.get(process)
        return trouble is not None and trouble.serious

    def rank(self, process: ProcessId) -> int:
        """Who is to be appointed first: the processes that have not failed, then those that failed long ago."""
        if process not in self._of:
            return -1
        return list(self._of).index(process)

    def is_pausing(self, now: float) -> bool:
        """Whether there is something here that must not be forgotten."""
        return any(trouble.until > now for trouble in self._of.values())

    def forget_old(self, now: float) -> None:
        """Processes die, and their numbers are never used again."""
        for process, trouble in list(self._of.items()):
            if trouble.until + REMEMBERED_S <= now:
                del self._of[process]

"""What ties one lease to its session in a host, found out after each request, when its answer has gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.logs import Log
from mppool.stats import pins

if TYPE_CHECKING:
    from mppool.hosting.asked import Use

log = Log("mppool.hosting")

Probe = Callable[[Any], bool]

_COMMENTS = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_MAKES_A_TABLE = re.compile(
    r"(?:^|;)\s*create\s+(?:(?:or\s+replace|global|local)\s+)*temp(?:orary)?\b|(?:^|;)\s*create\s+table\s+\[?#|"
    r"\bselect\b[^;]*\binto\s+(?:temp(?:orary)?\b|\[?#)",
    re.IGNORECASE,
)
_SETS = re.compile(
    r"(?:^|;)\s*(?:set(?!\s+(?:local|transaction)\b)|use\s|pragma\s+\w+\s*=|attach\s|listen\s|prepare\s|alter\s+session|lock\s+tables)|"
    r"\b(?:set_config|pg_(?:try_)?advisory_lock\w*|get_lock)\s*\(",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def left_by(statement: str) -> str | None:
    """What a statement leaves in its session: a temporary table, a setting, or nothing that can be told from its text."""
    text = _COMMENTS.sub(" ", statement)
    if _MAKES_A_TABLE.search(text):
        return pins.TABLE
    return pins.SETTING if _SETS.search(text) else None


def probe_of(resource: Any) -> Probe | None:
    """Tells whether a connection is in a transaction, where its driver says that; None: it does not."""
    kind = type(resource)
    if hasattr(kind, "in_transaction"):  # sqlite3
        return attrgetter("in_transaction")
    if hasattr(kind, "pgconn") or hasattr(resource, "pgconn"):  # psycopg 3
        return lambda connection: connection.pgconn.transaction_status != 0
    if kind.__module__.startswith("psycopg2"):
        return lambda connection: connection.status != 1
    return None


class LeasePins:
    """What ties the lease of one stream. It belongs to the stream's thread.

    is_open, statement: whether something was executed since the last commit, and what, where it was not looked at yet.
    """

    def __init__(self, all_pins: pins.Pins) -> None:
        self._pins = all_pins
        self._probe: Probe | None = None
        self._has_mode = False
        self.is_open = False
        self._in_transaction = False
        self._has_rows = False
        self.statement: str | None = None

    def begin(self, resource: Any) -> None:
        """A lease begins."""
        self._probe = probe_of(resource)
        self._has_mode = self._probe is None and hasattr(resource, "autocommit")
        self.is_open = False

    def end(self) -> None:
        """It ends."""
        self._in_transaction = self._has_rows = False
        self.statement = None
        self._pins.lease_ends(id(self), monotonic())

    def said(self, name: str, statement: Any) -> None:
        """A method is called, with this as its first argument."""
        if name in ("commit", "rollback", "__exit__"):
            self.is_open = False
        elif name.startswith("execute"):
            self.executes(statement if type(statement) is str else None)

    def executes(self, statement: str | None) -> None:
        """A statement begins; None: its text is not known."""
        self.is_open = True
        if statement is not None:
            self.statement = statement

    def look(self, use: Use) -> None:
        """See what ties the lease now."""
        if self._probe is not None or self._has_mode:
            try:
                if self._probe is not None:
                    is_in_one = self._probe(use.resource)
                else:
                    is_in_one = self.is_open and use.resource.autocommit is False
            except Exception:
                log.debug("whether a connection is in a transaction cannot be told", exc_info=True)
                is_in_one = False
            if is_in_one != self._in_transaction:
                self._in_transaction = is_in_one
                self._changes(pins.TRANSACTION, is_in_one)
        if self._has_rows is not (len(use.unread) > 0):
            self._has_rows = not self._has_rows
            self._changes(pins.CURSOR, self._has_rows)
        statement = self.statement
        if statement is not None:
            self.statement = None
            left = left_by(statement)
            if left is not None:
                self._changes(left, True)

    def _changes(self, reason: str, begins: bool) -> None:
        (self._pins.begins if begins else self._pins.ends)(id(self), reason, monotonic())

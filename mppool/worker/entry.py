"""One open resource of this process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from mppool.ids import GrantNumber

if TYPE_CHECKING:
    from mppool.worker.face import Face
    from mppool.worker.holdings import Holdings

EntryState = Literal["opening", "open", "returned", "closing"]

NEVER = math.inf
AT_ONCE = -math.inf

LONG_CLOSE_S = 2.0
"""A close that takes longer is warned of: until it returns, the slot is not free."""


class Entry:
    """A resource and what is known of it.

    Whoever took it from a shelf owns it until he puts it back, so most fields need no lock: `uses`,
    `released_at`, `lent_at` belong to the owner. `state` and `killed` are guarded by the holdings' lock.
    `retire_at` may be lowered by anybody at any time (a single store): from then on the resource is
    closed instead of being handed out.
    """

    __slots__ = (
        "ask_at",
        "checked_at",
        "closing_at",
        "doubtful",
        "face",
        "generation",
        "grant",
        "handed_at",
        "holdings",
        "kept_until",
        "key",
        "killed",
        "lent_at",
        "mark",
        "number",
        "opened",
        "opened_at",
        "opened_before",
        "released_at",
        "resource",
        "retire_at",
        "retire_reason",
        "shelf",
        "stack",
        "state",
        "thread",
        "token",
        "uses",
        "warned",
    )

    def __init__(
        self,
        face: Face,
        holdings: Holdings,
        number: GrantNumber,
        key: str,
        generation: int,
        opened_before: int,
    ) -> None:
        self.face = face
        self.holdings = holdings
        self.mark = holdings.mark
        self.number = number
        self.key = key
        self.shelf = face.shelf_of(key)
        self.generation = generation
        self.opened_before = opened_before
        self.resource: Any = None
        # While it is being opened: the grant, which its owner holds too, and the resource as soon as the
        # open hook has returned it. Both are for whoever cleans up after an interrupt (audit.py).
        self.grant: Any = None
        self.opened: list[Any] = []
        self.state: EntryState = "opening"
        self.opened_at = 0.0
        self.lent_at = 0.0
        self.handed_at = 0.0
        self.released_at = 0.0
        self.retire_at = NEVER
        self.retire_reason: Any = "retired"
        # Digest of the token that it was opened with, "" without one, and when (seconds since 1970) the
        # next checkout has to look whether that is still the right one.
        self.token = ""
        self.ask_at = NEVER
        self.uses = 0
        self.checked_at = 0.0
        self.closing_at = 0.0
        # A resource as old does not answer at all: closing this one may hang too, and its slot does not wait.
        self.doubtful = False
        self.kept_until = 0.0
        self.killed = False
        self.warned = False
        self.thread = ""
        self.stack = ""

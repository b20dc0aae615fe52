"""Which objects a pool has, and who has them."""

from __future__ import annotations

import threading
from collections import Counter
from time import monotonic
from typing import Any

from mppool.compat.proxypatternpool.box import Box
from mppool.compat.proxypatternpool.forking import start_anew_in_children
from mppool.process.fork import make_immortal
from mppool.worker.lease import Lease

# Equal values of these types may be one object, and nobody owns it.
_PLAIN_VALUES = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset)


class Register:
    """Everything of a pool that a forked child must begin again.

    lock: guards all the rest. While it is held nothing of the user's runs but finalizers, which may come
        back here: therefore it is reentrant.
    boxes: all that are open, in the order of their creation.
    lent: by identity of the object, so that it may be unhashable; several where `fun` returns one twice.
    counts: what has happened; `nobjs` and the like are counted when asked for.
    closing: objects whose closer is running.
    """

    def __init__(self) -> None:
        self._begin()
        start_anew_in_children(self)

    def _begin(self) -> None:
        self.lock = threading.RLock()
        self.boxes: dict[int, Box] = {}
        self.lent: dict[int, list[Box]] = {}
        self.counts: Counter[str] = Counter()
        self.closing = 0
        self.begun = False
        self.last_error: BaseException | None = None
        self.started_at = self.round_at = monotonic()
        self.round_time = 0.0

    def belongings(self) -> list[Any]:
        """See Holder."""
        with self.lock:
            return [(box, box.content) for box in self.boxes.values()]

    def renew(self) -> None:
        """See Holder."""
        make_immortal((self.lock, self.boxes, self.lent, self.last_error))
        self._begin()

    def must_begin(self) -> bool:
        """Whether filling and housekeeping are still to be started; said to one caller only."""
        if self.begun:
            return False
        with self.lock:
            before, self.begun = self.begun, True
            return not before

    def count(self, *counters: str) -> None:
        """Count something."""
        with self.lock:
            self.counts.update(counters)

    def add(self, box: Box) -> None:
        """An object was made."""
        with self.lock:
            self.boxes[id(box)] = box
            self.counts["ncreated"] += 1
            self.last_error = None

    def remove(self, box: Box, content: Any) -> None:
        """An object is about to be destroyed."""
        with self.lock:
            self.boxes.pop(id(box), None)
            self.closing += 1
            self._forget_loan(box, id(content))

    def destroyed(self) -> None:
        """The closer has returned."""
        with self.lock:
            self.closing -= 1
            self.counts["ndestroys"] += 1

    def lend(self, box: Box, lease: Lease[Box], *, to_proxy: bool) -> Any:
        """Hand the object out. to_proxy: the caller keeps the lease as long as the object."""
        with self.lock:
            content = box.content
            box.uses += 1
            box.last_get = monotonic()
            owned = to_proxy and not isinstance(content, _PLAIN_VALUES)
            box.lend(lease, content, owner_keeps_lease=owned)
            self.lent.setdefault(id(content), []).append(box)
            self.counts["nuses"] += 1
        return content

    def find_lent(self, content: Any, lease: Lease[Box] | None) -> tuple[Box, Lease[Box]] | None:
        """Who has this object, taken from the list; None if nobody has."""
        with self.lock:
            candidates = [box for box in self.lent.get(id(content), ()) if box.content is content]
            if lease is not None:  # several may have one and the same object
                candidates = [box for box in candidates if box.lease is lease]
            for box in candidates:
                found = box.lease
                self._forget_loan(box, id(content))
                if found is not None:
                    return box, found
        return None

    def all_lent(self) -> list[Lease[Box]]:
        """The leases under which objects are in use."""
        with self.lock:
            leases = [box.lease for boxes in self.lent.values() for box in boxes]
        return [lease for lease in leases if lease is not None]

    def _forget_loan(self, box: Box, identity: int) -> None:
        """Caller holds `lock`. The object may be dead, and its identity with it: then all are searched."""
        if not box.is_lent:
            return
        keys = [identity] if box in self.lent.get(identity, ()) else list(self.lent)
        for key in keys:
            left = [other for other in self.lent[key] if other is not box]
            if left:
                self.lent[key] = left
            else:
                del self.lent[key]

    def objects(self) -> tuple[list[tuple[Box, Any]], list[tuple[Box, Any]], int]:
        """What is available, what is in use (boxes with their objects), and how many are about to go."""
        with self.lock:
            boxes = list(self.boxes.values())
            pairs = [(box, box.content) for box in boxes]
            pairs = [pair for pair in pairs if not pair[0].was_dropped]
            going = self.closing + len(boxes) - len(pairs)
            return (
                [pair for pair in pairs if not pair[0].is_lent],
                [pair for pair in pairs if pair[0].is_lent],
                going,
            )

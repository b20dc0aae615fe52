"""Declarations and commands concern a pool as a whole. The processes must hear of them, and the journal must keep
what the next server has to know.
"""

from __future__ import annotations

import math

from mppool.core.decisions import Draining, DropToken, Notice, PoolChanged, RecordPool
from mppool.core.declarations import Declarations
from mppool.core.events import BackendFailed, Declaration, Held, Resize, TokenReplaced
from mppool.core.generations import Generations
from mppool.core.outbox import Outbox
from mppool.ids import ProcessId
from mppool.options import changes


class Control:
    """Changes declarations and generations, journals what the next server must know, and tells the processes."""

    def __init__(
        self, pool: str, declarations: Declarations, generations: Generations, outbox: Outbox
    ) -> None:
        self._pool = pool
        self._declarations = declarations
        self._generations = generations
        self._outbox = outbox

    # --- options and bounds ------------------------------------------------------------------------------

    def declare(self, declaration: Declaration, process: ProcessId, now: float) -> bool:
        """A process declares the pool; True if that changes anything. The newest wins, with one warning.

        It opens a pool that was closed before it was made.
        """
        made_at = now - declaration.age
        before = self._declarations.options
        changed = self._declarations.take(process, declaration, made_at)
        options = self._declarations.options
        if options != before:
            text = f"this declaration replaces an older one: {changes(before, options)}"
            self._outbox.tell(process, Notice(self._pool, text))
            changed = True
        if changed:
            self._outbox.write_down(self.record())
        if self._generations.reopen(made_at):
            self._announce(now)
            changed = True
        return changed

    def resize(self, event: Resize, now: float) -> None:
        """New bounds. What is open beyond a smaller cap goes when it is idle or released."""
        bounds = self._declarations.bounds
        if event.max_size_given:
            bounds.max_size.set(event.max_size, now)
        if event.min_size is not None:
            bounds.min_size.set(event.min_size, now)
        self._outbox.write_down(self.record())

    def restore(self, record: RecordPool) -> None:
        """Go on with what the journal says of the pool."""
        declared_at = self._declarations.declared_at
        self._declarations.bounds.restore(record, declared_at)
        closed_at = record.closed_at if record.declared else declared_at
        self._generations.restore(record.generation, record.closed, closed_at)

    def record(self) -> RecordPool:
        """What the next server must know although nobody attached tells it."""
        now = self._generations
        return self._declarations.bounds.record(
            self._pool, now.current, closed=now.closed, closed_at=now.closed_at
        )

    # --- generations -------------------------------------------------------------------------------------

    def reset(self, now: float, over: float) -> None:
        """A new generation: everything that was opened before goes when it is idle or released, over so many seconds."""
        self._generations.begin(now + over if over > 0 else -math.inf)
        self._announce(now)

    def close(self, now: float, *, reopened: bool) -> None:
        """The pool hands out nothing any more; reopened: it hands out again."""
        if not reopened:
            self._generations.close(now)
        elif not self._generations.reopen(math.inf):
            return  # it was open
        self._announce(now)

    def drained(self, process: ProcessId, generation: int, left: int) -> None:
        """Tell how much of a drain is left."""
        self._outbox.answer(process, Draining(self._pool, generation, left))

    def backend_failed(self, event: BackendFailed) -> None:
        """A check found the backend gone; what is stale is closed when idle or released."""
        change = self._generations.backend_failed(event)
        if change is not None:
            self._spread(change)

    def token_replaced(self, event: TokenReplaced) -> None:
        """Resources that were opened with the old token are closed where they lie idle, in all processes."""
        for process in self._declarations.declarers():
            self._outbox.tell(process, DropToken(self._pool, event.key, event.token))

    def attached(self, process: ProcessId, held: list[Held], now: float) -> None:
        """A process with this inventory hears what it may have missed, and may know what the journal did not."""
        self._outbox.tell(process, self._generations.state(now))
        for change in self._generations.unheard(held):
            self._outbox.tell(process, change)
        for change in self._generations.learn(held):
            self._spread(change)

    def _spread(self, change: PoolChanged) -> None:
        """Something is stale from now on: one key, or a generation of the whole pool."""
        if change.key is None:
            self._announce()
            return
        for process in self._declarations.declarers():
            self._outbox.tell(process, change)

    def _announce(self, now: float = math.inf) -> None:
        """Journal and tell everybody the generation, and whether the pool is closed."""
        self._outbox.write_down(self.record())
        self._outbox.tell_all(self._generations.state(now))

"""What the books decided is done here: one method for each decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.decisions import (
    NOBODY,
    Ask,
    AskAgain,
    Close,
    DropToken,
    EndLeases,
    Grant,
    Keep,
    Notice,
    PoolChanged,
    Reclaim,
    Refuse,
)
from mppool.core.tokens import FetchToken, TokenDecision, TokenGiven, TokenRefused, TokensForgotten
from mppool.ids import Session, Ticket
from mppool.logs import Log
from mppool.process.waiter import Retry
from mppool.tokens.in_process import forget_all
from mppool.wire.messages import Done, EndSessions, Failed
from mppool.worker.context import Context
from mppool.worker.ending import (
    close_for_successor,
    close_soon,
    drop_token,
    end_leases,
    retire_older_than,
    retire_over,
)
from mppool.worker.fence import end_sessions
from mppool.worker.inventory import PoolEntry
from mppool.worker.lanes import tell_what_is_lent
from mppool.worker.opening import open_for_shelf, use_grant

if TYPE_CHECKING:
    from mppool.worker.local_pool import LocalPool

log = Log("mppool")


class Dispatch:
    """Carries out the decisions of the books, in their order.

    pools: by name. What ending, opening and checking know of one of them stands in OwnPool.
    """

    def __init__(self, context: Context, pools: Mapping[str, LocalPool]) -> None:
        self._context = context
        self._pools = pools
        self._handlers: dict[type, Callable[[Any, Session], None]] = {
            Grant: self._on_grant,
            Keep: self._on_keep,
            Close: self._on_close,
            Refuse: self._on_refuse,
            AskAgain: self._on_ask_again,
            Reclaim: self._on_reclaim,
            EndLeases: self._on_end_leases,
            Ask: self._on_ask,
            PoolChanged: self._on_pool_changed,
            DropToken: self._on_drop_token,
            Notice: self._on_notice,
            EndSessions: self._on_end_sessions,
            TokensForgotten: self._on_tokens_forgotten,
            **dict.fromkeys((TokenGiven, FetchToken, TokenRefused), self._on_token),
        }

    def carry_out(self, decision: Any, session: Session) -> None:
        """Called in the order of the decisions, by one thread at a time."""
        if session != self._context.inventory.session:
            return  # said by a server, or in a session, that is over; the inventory has decided since
        handler = self._handlers.get(type(decision))
        if isinstance(decision, (Done, Failed)):
            return  # to a command that was sent on this channel, and does not wait for its answer
        if handler is None:
            log.error(
                "manager %r: a %s came on the errand channel",
                self._context.name,
                type(decision).__name__,
            )
        else:
            handler(decision, session)

    # --- grants and tickets ------------------------------------------------------------------------------

    def register(self, grant: Grant, session: Session) -> bool:
        """Enter a fresh grant into the table; False if it belongs to another session, or was voided (rule 2)."""
        pool, inventory = self._pools[grant.pool], self._context.inventory
        entry = PoolEntry(
            pool, inventory, grant.number, grant.key, grant.generation, grant.opened_before
        )
        return inventory.register(entry, grant, session, monotonic())

    def answer(self, ticket: Ticket, answer: Any) -> None:
        """Answer the thread that waits with this ticket, if there is one."""
        for pool in list(self._pools.values()):
            if pool.idle.line.ticket_ended(ticket, answer):
                return

    def retry(self, ticket: Ticket) -> None:
        """The thread that waits with this ticket must ask again: its place in the queue is gone."""
        self.answer(ticket, Retry)
        self._context.tokens.retry(ticket, Retry)

    def session_lost(self) -> None:
        """Nobody can be told anything now: those who wait ask again, under the next session."""
        for pool in list(self._pools.values()):
            pool.idle.set_contended(False)
            pool.idle.line.forget_tickets()
            for waiter in pool.idle.line.all_waiters():
                waiter.give(Retry)
        self._context.tokens.session_lost(Retry)

    # --- one for each decision ---------------------------------------------------------------------------

    def _on_grant(self, grant: Grant, session: Session) -> None:
        pool = self._pools[grant.pool]
        if not grant.fresh:
            entry = self._context.inventory.take_aside(grant.number)
            if entry is None:
                # It was lost on the way; a thread that waits for it must not wait for ever.
                self.retry(grant.ticket)
                return
            pool.idle.line.ticket_ended(grant.ticket, None)
            pool.idle.give(entry, grant.ticket)
        elif self.register(grant, session):
            if grant.instead_of:
                self._exchange(pool, grant)
            elif grant.ticket == NOBODY:
                self._context.chores.add(lambda: open_for_shelf(pool, grant))
            else:
                use_grant(pool, grant)

    def _exchange(self, pool: LocalPool, grant: Grant) -> None:
        """What was brought back is closed, and what is granted is opened then."""
        entry = self._context.inventory.take_aside(grant.instead_of)
        if entry is not None:
            close_for_successor(entry)
            pool.idle.line.expects_opening(grant.key)
        elif grant.number in self._context.inventory.table:
            use_grant(pool, grant)
        # Else an interrupted thread has lost what is to be closed. It is closed by the audit, which goes on then.

    def _on_keep(self, keep: Keep, session: Session) -> None:
        entry = self._context.inventory.take_aside(keep.number)
        if entry is not None:
            pool: LocalPool = entry.local
            now, max_idle = monotonic(), pool.options.max_idle
            if max_idle is not None and max(entry.kept_until, entry.released_at + max_idle) <= now:
                # It was offered because it was idle for long, and is wanted all the same (min_size).
                entry.kept_until = now + max_idle
                self._context.housekeeper.expects(entry.kept_until)
            pool.idle.put_kept(entry)

    def _on_close(self, close: Close, session: Session) -> None:
        entry = self._context.inventory.take_aside(close.number)
        if entry is not None:
            close_soon(entry, close.reason)

    def _on_refuse(self, refuse: Refuse, session: Session) -> None:
        self.answer(refuse.ticket, refuse)

    def _on_ask_again(self, decision: AskAgain, session: Session) -> None:
        self.retry(decision.ticket)

    def _on_reclaim(self, reclaim: Reclaim, session: Session) -> None:
        pool = self._pools[reclaim.pool]
        idle = pool.idle
        if reclaim.contended:
            self._context.audit.want_again()
        idle.set_contended(reclaim.contended, reclaim.settled)
        if idle.has_lanes and reclaim.contended:
            tell_what_is_lent(pool)
        idle.sweep_all(reclaim.sweep, reclaim.idle_for)

    def _on_end_leases(self, ended: EndLeases, session: Session) -> None:
        pool = self._pools.get(ended.pool)
        if pool is not None:
            end_leases(pool, ended.count, ended.why)

    def _on_ask(self, ask: Ask, session: Session) -> None:
        if self._context.inventory.disown(ask.number):
            self._context.link.flush()

    def _on_pool_changed(self, changed: PoolChanged, session: Session) -> None:
        pool = self._pools.get(changed.pool)
        if pool is None:
            return
        pool.closed_everywhere = changed.closed
        if changed.over > 0 and not pool.closed:
            retire_over(pool, changed.generation, changed.over)
            return
        for entry in retire_older_than(pool, changed.generation, changed.key, hung=changed.hung):
            close_soon(entry, entry.retire_reason)

    def _on_drop_token(self, drop: DropToken, session: Session) -> None:
        pool = self._pools.get(drop.pool)
        if pool is not None:
            drop_token(pool, drop.key, drop.token)

    def _on_token(self, answer: TokenDecision, session: Session) -> None:
        self._context.tokens.answered(answer)

    def _on_tokens_forgotten(self, forgotten: TokensForgotten, session: Session) -> None:
        if forgotten.identity is None:
            forget_all()
        self._context.tokens.forget(forgotten.identity, forgotten.fetch, forgotten.token)

    def _on_end_sessions(self, said: EndSessions, session: Session) -> None:
        end_sessions(list(self._pools.values()), said)

    def _on_notice(self, notice: Notice, session: Session) -> None:
        log.warning("pool %r: %s", notice.pool, notice.text)

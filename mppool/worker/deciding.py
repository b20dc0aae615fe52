"""What the books decided is done here: one function for each decision."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.decisions import (
    NOBODY,
    Ask,
    Close,
    DropToken,
    Grant,
    Keep,
    Notice,
    PoolChanged,
    Reclaim,
    Refuse,
)
from mppool.core.tokens import FetchToken, TokenDecision, TokenGiven, TokenRefused, TokensForgotten
from mppool.ids import Session
from mppool.logs import Log
from mppool.tokens.in_process import forget_all
from mppool.wire.messages import Done, Failed
from mppool.worker.ending import drop_token, retire_older_than
from mppool.worker.opening import open_for_shelf, use_grant
from mppool.worker.shelf import shelve, shelve_where_it_lay, sweep

if TYPE_CHECKING:
    from mppool.worker.member import Member

log = Log("mppool")


def carry_out(member: Member, decision: Any, session: Session) -> None:
    """See Member.deliver."""
    if session != member.inventory.session:
        return  # said by a server, or in a session, that is over; the inventory has decided since
    handler = _HANDLERS.get(type(decision))
    if isinstance(decision, (Done, Failed)):
        return  # to a command that was sent on this channel, and does not wait for its answer
    if handler is None:
        log.error(
            "manager %r: a %s came on the errand channel", member.name, type(decision).__name__
        )
    else:
        handler(member, decision, session)


def _on_grant(member: Member, grant: Grant, session: Session) -> None:
    face = member.faces[grant.pool]
    if not grant.fresh:
        entry = member.inventory.take_aside(grant.number)
        if entry is None:
            # It was lost on the way; a thread that waits for it must not wait for ever.
            member.retry(grant.ticket)
            return
        face.line.ticket_ended(grant.ticket, None)
        if not face.line.give_to(grant.key, grant.ticket, entry):
            shelve(entry)
    elif member.register(grant, session):
        if grant.ticket == NOBODY:
            member.chores.add(lambda: open_for_shelf(face, grant))
        else:
            use_grant(face, grant)


def _on_keep(member: Member, keep: Keep, session: Session) -> None:
    entry = member.inventory.take_aside(keep.number)
    if entry is not None:
        now, max_idle = monotonic(), entry.face.options.max_idle
        if max_idle is not None and max(entry.kept_until, entry.released_at + max_idle) <= now:
            # It was offered because it was idle for long, and is wanted all the same (min_size).
            entry.kept_until = now + max_idle
            member.housekeeper.expects(entry.kept_until)
        shelve_where_it_lay(entry)


def _on_close(member: Member, close: Close, session: Session) -> None:
    entry = member.inventory.take_aside(close.number)
    if entry is not None:
        member.close_soon(entry, close.reason)


def _on_refuse(member: Member, refuse: Refuse, session: Session) -> None:
    member.answer(refuse.ticket, refuse)


def _on_reclaim(member: Member, reclaim: Reclaim, session: Session) -> None:
    face = member.faces[reclaim.pool]
    if reclaim.contended:
        member.audit.want_again()
    face.line.set_contended(reclaim.contended)
    left = reclaim.sweep
    # Of thousands of identities hardly any has something idle, and this comes again and again while somebody waits.
    for key in [key for key, shelf in list(face.shelves.items()) if shelf]:
        if left <= 0:
            break
        left -= sweep(face, key, left, reclaim.idle_for)


def _on_ask(member: Member, ask: Ask, session: Session) -> None:
    if member.inventory.disown(ask.number):
        member.flush()


def _on_pool_changed(member: Member, changed: PoolChanged, session: Session) -> None:
    face = member.faces.get(changed.pool)
    if face is None:
        return
    face.closed_everywhere = changed.closed
    for entry in retire_older_than(face, changed.generation, changed.key, hung=changed.hung):
        member.close_soon(entry, entry.retire_reason)


def _on_drop_token(member: Member, drop: DropToken, session: Session) -> None:
    face = member.faces.get(drop.pool)
    if face is not None:
        drop_token(face, drop.key, drop.token)


def _on_token(member: Member, answer: TokenDecision, session: Session) -> None:
    member.tokens.answered(answer)


def _on_tokens_forgotten(member: Member, forgotten: TokensForgotten, session: Session) -> None:
    if forgotten.identity is None:
        forget_all()
    member.tokens.forget(forgotten.identity, forgotten.fetch, forgotten.token)


def _on_notice(member: Member, notice: Notice, session: Session) -> None:
    log.warning("pool %r: %s", notice.pool, notice.text)


_HANDLERS: dict[type, Callable[[Member, Any, Session], None]] = {
    Grant: _on_grant,
    Keep: _on_keep,
    Close: _on_close,
    Refuse: _on_refuse,
    Reclaim: _on_reclaim,
    Ask: _on_ask,
    PoolChanged: _on_pool_changed,
    DropToken: _on_drop_token,
    Notice: _on_notice,
    TokensForgotten: _on_tokens_forgotten,
    **dict.fromkeys((TokenGiven, FetchToken, TokenRefused), _on_token),
}

"""What a process reports of itself, for the statistics."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.recipe import overrides
from mppool.wire.messages import PoolReport, Report, ResourceReport

if TYPE_CHECKING:
    from mppool.worker.entry import Entry
    from mppool.worker.face import Face
    from mppool.worker.member import Member

log = logging.getLogger("mppool")

_asking = threading.local()


def build(member: Member, request: int) -> Report:
    """All pools of this process."""
    return Report(request, [_of_pool(face) for face in list(member.faces.values())])


def _of_pool(face: Face) -> PoolReport:
    now = monotonic()
    holdings = face.holdings
    with holdings.lock:
        entries = [entry for entry in holdings.table.values() if entry.face is face]
        past = face.past_uses
        counters = dict(face.counters)
    idle = {entry.number for shelf in list(face.shelves.values()) for entry in list(shelf)}
    if (borrowed := face.borrowed) is not None:  # a background check is no use
        idle.add(borrowed.number)
    uses = past + sum(entry.uses for entry in entries)
    counters["checkouts"] = uses
    resources = [_of_entry(face, entry, entry.number in idle, now) for entry in entries]
    histograms = {name: list(counts) for name, counts in face.histograms.items()}
    states = [resource.state for resource in resources]
    # Uses and waits that were too short to be entered one by one fill the first bucket.
    over = uses - sum(entry.lent_at > entry.released_at for entry in entries)
    histograms["use"][0] += max(0, over - sum(histograms["use"]))
    histograms["wait"][0] += max(0, uses - sum(histograms["wait"]))
    return PoolReport(
        pool=face.name,
        in_use=states.count("in_use"),
        idle=states.count("idle"),
        waiting=len(face.all_waiters()),
        counters=counters,
        histograms=histograms,
        resources=resources,
    )


def _of_entry(face: Face, entry: Entry, idle: bool, now: float) -> ResourceReport:
    state: str = entry.state
    if state == "open":
        state = "idle" if idle else "in_use"
    elif state == "returned":
        state = "idle"
    looked_at = entry.state == "open" and entry.resource is not None
    return ResourceReport(
        number=entry.number,
        key=entry.key,
        state=state,
        uses=entry.uses,
        age=now - entry.opened_at if entry.opened_at else 0.0,
        idle_for=now - entry.released_at if state == "idle" else None,
        held_for=now - max(entry.lent_at, entry.opened_at) if state == "in_use" else None,
        description=_ask(face, "describe", entry, str) if looked_at else "",
        extra=_ask(face, "stats", entry, dict[str, Any]) if looked_at else {},
    )


def has_hooks(member: Member) -> bool:
    """Whether a report calls the user's code, which may take its time."""
    return any(
        overrides(face.recipe, hook)
        for face in list(member.faces.values())
        for hook in ("stats", "describe")
    )


def _ask(face: Face, hook: str, entry: Entry, kind: Any) -> Any:
    """What `stats` or `describe` says, of that kind and JSON-compatible whatever it says.

    The resource may be in use meanwhile: these hooks only look. One that wants statistics itself gets them
    without what the hooks say.
    """
    nothing = kind()
    if getattr(_asking, "hook", None) is not None:
        return nothing
    _asking.hook = hook
    try:
        said = getattr(face.recipe, hook)(entry.resource)
        # Through JSON and back: it must travel, and be a text for whoever reads the statistics.
        return msgspec.json.decode(msgspec.json.encode(said), type=kind)
    except Exception:
        face.count("hook_errors")
        log.warning(
            "pool %r: the hook %s raised, or gave what is not JSON-compatible",
            face.name,
            hook,
            exc_info=True,
        )
        return nothing
    finally:
        _asking.hook = None

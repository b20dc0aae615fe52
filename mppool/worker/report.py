"""What a process reports of itself, for the statistics."""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.logs import Log
from mppool.process.executor import let_others
from mppool.recipe import overrides
from mppool.stats.report import PoolReport, ResourceReport
from mppool.wire.messages import Report
from mppool.worker.callers import noted
from mppool.worker.lanes import in_use_by_lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mppool.worker.context import Context
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

log = Log("mppool")

_asking = threading.local()


AT_ONCE = 200
"""So many resources are looked at, and sent, at once."""

SURVEY_PATIENCE_S = 0.15
"""The same where a database is asked first, which takes an exchange with it."""

HOOKS_PATIENCE_S = 0.1
"""The figures are sent without what the hooks say if they take longer: the server may wait for 0.2 s only."""


class Reporter:
    """Answers requests for the figures of this process.

    Hooks are called by a chore, of which there is only ever one, because they may hang. All else happens in the
    background thread. What both write is single values, each written by one of them but for `_wanted`,
    which is looked at again after the chore has said that it ends.
    """

    def __init__(
        self, context: Context, pools: Mapping[str, LocalPool], send: Callable[[Report], None]
    ) -> None:
        self._context = context
        self._pools = pools
        self._send = send
        self._wanted: int | None = None
        self._surveys = False
        self._busy = False
        # One entry for each hook that wants statistics just now; both ends are atomic.
        self._without_hooks: deque[None] = deque()
        self._answered = 0
        self._asked = 0
        self._due = math.inf

    def asked(self, request: int, *, brief: bool = False, survey: bool = False) -> None:
        """The server wants a report. brief: without what the hooks say. survey: after the databases were asked."""
        surveys = survey and _has_surveys(self._pools)
        if brief or self._without_hooks or not (surveys or _has_hooks(self._pools)):
            send(self._pools, request, self._send, hooks=False)
            return
        self._asked = request
        self._surveys = self._surveys or surveys
        self._due = monotonic() + (SURVEY_PATIENCE_S if surveys else HOOKS_PATIENCE_S)
        self._wanted = request
        if not self._busy:
            self._busy = True
            self._context.chores.add(self._ask_hooks)
        self._context.housekeeper.expects(self._due)

    @contextmanager
    def on_behalf_of_a_hook(self) -> Iterator[None]:
        """Where a hook itself wants statistics, it is not called for them, or that would never end."""
        inside = getattr(_asking, "hook", None) is not None
        if inside:
            self._without_hooks.append(None)
        try:
            yield
        finally:
            if inside:
                self._without_hooks.pop()

    def look(self, now: float) -> None:
        """Answer without the hooks, where they take too long."""
        if now >= self._due:
            self._due = math.inf
            if self._answered != self._asked:
                send(self._pools, self._asked, self._send, hooks=False)

    def _ask_hooks(self) -> None:
        try:
            while (request := self._wanted) is not None:
                self._wanted = None
                if self._surveys:
                    self._surveys = False
                    survey_all(self._pools)
                send(self._pools, request, self._send)
                self._answered = request
        finally:
            self._busy = False
        if self._wanted is not None:  # it came in this very moment
            self._context.chores.add(self._ask_hooks)


class PatientReport:
    """The figures of this process for itself, without what the hooks say where they take too long.

    _asking: held while a chore asks the hooks; where they hang, others go without them and add no chore.
    """

    def __init__(self, context: Context, pools: Mapping[str, LocalPool]) -> None:
        self._context = context
        self._pools = pools
        self._asking = threading.Lock()

    def __call__(self, survey: bool = False) -> Report:
        """The report. Called by any thread, with no lock held. survey: the databases are asked first, by this one."""
        inside = getattr(_asking, "hook", None) is not None
        if survey and not inside:
            survey_all(self._pools)
        if inside or not _has_hooks(self._pools):
            return build(self._pools, 0, hooks=False)
        until = monotonic() + HOOKS_PATIENCE_S
        answers: deque[Report] = deque()
        if self._asking.acquire(timeout=HOOKS_PATIENCE_S):
            done = threading.Event()
            self._context.chores.add(lambda: self._ask_hooks(answers, done))
            done.wait(max(0.0, until - monotonic()))
        return answers[0] if answers else build(self._pools, 0, hooks=False)

    def _ask_hooks(self, answers: deque[Report], done: threading.Event) -> None:
        try:
            answers.append(build(self._pools, 0))
        finally:
            self._asking.release()
            done.set()


def survey_all(pools: Mapping[str, LocalPool]) -> None:
    """Ask the database of each pool, on a resource that lies idle here, what it says of its sessions."""
    for local in list(pools.values()):
        if _can_be_surveyed(local):
            for entry in local.idle.borrow(lambda entry: entry.retire_at > monotonic()):
                local.surveyed = local.hooks.survey(
                    entry.resource, f"{local.member.name}/{local.name}/"
                )
                local.idle.put_where_it_lay(entry)
                break  # one is enough


def _has_surveys(pools: Mapping[str, LocalPool]) -> bool:
    return any(_can_be_surveyed(local) for local in list(pools.values()))


def _can_be_surveyed(local: LocalPool) -> bool:
    """A resource that belongs to a thread is asked nothing by another one."""
    return overrides(local.recipe, "survey") and not local.recipe.open_in_caller


def send(
    pools: Mapping[str, LocalPool],
    request: int,
    send_one: Callable[[Report], None],
    *,
    hooks: bool = True,
) -> None:
    """Build and send it, in parts, and with a pause for others after each, where there are many resources."""
    whole = build(pools, request, hooks=hooks)
    for pool in whole.pools:
        while len(pool.resources) > AT_ONCE:
            some, pool.resources = pool.resources[-AT_ONCE:], pool.resources[:-AT_ONCE]
            send_one(Report(request, [PoolReport(pool.pool, 0, 0, 0, {}, {}, some)], more=True))
            let_others()
    send_one(whole)


def build(pools: Mapping[str, LocalPool], request: int, *, hooks: bool = True) -> Report:
    """All pools of this process; `hooks`: and what their hooks say of each resource."""
    return Report(request, [_of_pool(local, hooks) for local in list(pools.values())])


def _of_pool(local: LocalPool, hooks: bool) -> PoolReport:
    now, lanes = monotonic(), local.options.lanes
    inventory = local.inventory
    with inventory.lock:
        entries = [entry for entry in inventory.table.values() if entry.local is local]
        past = local.past_uses
        local.count("timeouts", local.refusals.take())
        counters = dict(local.counters)
    idle = {entry.number for entry in local.idle.shelves.all()}
    if (borrowed := local.idle.borrowed) is not None:  # a background check is no use
        idle.add(borrowed.number)
    idle |= local.idle.lent_ahead
    uses = past + sum(entry.uses for entry in entries)
    counters["checkouts"] = uses
    resources = []
    for number, entry in enumerate(entries, 1):
        resources.append(_of_entry(local, entry, entry.number in idle, now, hooks))
        if not number % AT_ONCE:
            let_others()
    histograms = {name: list(counts) for name, counts in local.durations.histograms.items()}
    states = [resource.state for resource in resources]
    # Uses and waits that were too short to be entered one by one fill the first bucket.
    over = uses - sum(entry.lent_at > entry.released_at for entry in entries)
    histograms["use"][0] += max(0, over - sum(histograms["use"]))
    histograms["wait"][0] += max(0, uses - sum(histograms["wait"]))
    return PoolReport(
        pool=local.name,
        in_use=states.count("in_use") + states.count("detached"),
        idle=states.count("idle"),
        waiting=local.idle.line.in_want(),
        counters=counters,
        histograms=histograms,
        resources=resources,
        database=local.surveyed,
        longest_wait=local.idle.line.longest_wait(now),
        pins={} if local.pins is None else local.pins.figures(now),
        lanes={} if lanes is None else in_use_by_lane(local, lanes),
    )


def _of_entry(
    local: LocalPool, entry: PoolEntry, idle: bool, now: float, hooks: bool
) -> ResourceReport:
    state: str = entry.state
    if state == "open":
        state = "idle" if idle else "in_use"
    elif state == "returned":
        state = "idle"
    looked_at = hooks and entry.state == "open" and entry.resource is not None
    label, thread = noted(entry) if state == "in_use" else ("", "")
    return ResourceReport(
        number=entry.number,
        key=entry.key,
        state=state,
        uses=entry.uses,
        age=now - entry.opened_at if entry.opened_at else 0.0,
        idle_for=now - entry.released_at if state == "idle" else None,
        held_for=now - max(entry.lent_at, entry.opened_at) if state == "in_use" else None,
        description=_ask(local, "describe", entry, str) if looked_at else "",
        extra=_ask(local, "stats", entry, dict[str, Any]) if looked_at else {},
        label=label,
        thread=thread,
    )


def _has_hooks(pools: Mapping[str, LocalPool]) -> bool:
    """Whether a report calls the user's code, which may take its time."""
    return any(
        overrides(local.recipe, hook)
        for local in list(pools.values())
        for hook in ("stats", "describe")
    )


def _ask(local: LocalPool, hook: str, entry: PoolEntry, kind: Any) -> Any:
    """What `stats` or `describe` says, of that kind and JSON-compatible whatever it says.

    The resource may be in use meanwhile: these hooks only look. One that wants statistics itself gets them
    without what the hooks say.
    """
    nothing = kind()
    if getattr(_asking, "hook", None) is not None:
        return nothing
    _asking.hook = hook
    try:
        said = local.hooks.look(hook, entry.resource)
        # Through JSON and back: it must travel, and be text for readers of the statistics.
        answer = msgspec.json.decode(msgspec.json.encode(said), type=kind)
        msgspec.msgpack.encode(answer)  # whose whole numbers end at 64 bits
        return answer
    except Exception:
        local.count("hook_errors")
        log.warning(
            "pool %r: the hook %s raised, or gave what is not JSON-compatible",
            local.name,
            hook,
            exc_info=True,
        )
        return nothing
    finally:
        _asking.hook = None

"""What `manager.stats()` and `pool.stats()` return, for type checkers and editors. Durations are seconds."""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict

from mppool.recipe import Survey


class Histogram(TypedDict):
    """bounds: upper bounds of the buckets. counts: one more, for what is longer than the last bound."""

    bounds: list[float]
    counts: list[int]


class Histograms(TypedDict):
    """Of a pool."""

    wait: Histogram
    use: Histogram
    open: Histogram


class ProcessStats(TypedDict):
    """A process, over all pools. stale: it did not answer; the figures are the last that it said."""

    pid: int
    label: str
    in_use: int
    idle: int
    waiting: int
    stale: bool


class PoolProcessStats(ProcessStats):
    """A process, in one pool."""

    checkouts: int
    slots: int


class ResourceStats(TypedDict):
    """One resource; what the recipe's `stats` hook said of it stands beside these.

    held_for: where it is lent; idle_for: where it is not. age, idle_for, held_for: None where nothing is known.
    label, thread: of its checkout; empty where the checkout gave no label, and the thread was not noted.
    """

    id: int
    pid: int
    state: str
    identity_key: str | None
    uses: int
    age: float | None
    idle_for: float | None
    held_for: float | None
    description: str
    label: str
    thread: str


class LaneStats(TypedDict):
    """A lane of a pool. reserved: its right; of the common lane ("") what the others leave of max_size."""

    reserved: int
    in_use: int
    waiting: int


class PinStats(TypedDict):
    """What ties leases to their sessions in hosts, since these began: how many leases, and for how many seconds."""

    leases: int
    seconds: float


class PoolStats(TypedDict):
    """A pool, over all processes.

    share: what other machines leave to this one of `max_size`; None: there are none.
    database: what it said when it was asked last; None: nobody has asked, or it does not tell.
    longest_wait: of the checkouts that wait now; 0 where none does.
    pins: by what ties them ("transaction", "cursor", "temporary table", "session setting"); None: the pool has no hosts.
    """

    name: str
    placement: str
    max_size: int | None
    share: int | None
    min_size: int
    budget: str | None
    lanes: dict[str, LaneStats] | None
    pins: dict[str, PinStats] | None
    size: int
    opening: int
    in_use: int
    idle: int
    waiting: int
    breaker: Literal["closed", "open", "probing"]
    identities: int
    generation: int
    closed: bool
    counters: dict[str, int]
    counters_began: float | None
    histograms: Histograms
    longest_wait: float
    database: Survey | None
    processes: list[PoolProcessStats]
    resources: list[ResourceStats]


class BudgetStats(TypedDict):
    """A cap over several pools. size, waiting: over all of them. pools: how many resources each has."""

    name: str
    max_size: int
    size: int
    waiting: int
    pools: dict[str, int]


class TokenStats(TypedDict):
    """A token that processes share. expires_in: None where there is none at present."""

    identity: str
    scopes: list[str]
    tenant: str | None
    cae: bool
    expires_in: float | None
    state: str
    waiting: int


class MachinesPoolStats(TypedDict):
    """A pool over all machines, as Redis has told it last. share: this machine's; None: no cap."""

    share: int | None
    max_size: int | None
    taken: int
    wanted: int


class MachinesStats(TypedDict):
    """This machine among those that share caps.

    phase: "waiting" for its first lease, "leased", "fading" (it opens nothing more) or "lost". age: seconds since the
    lease counts. trouble: why Redis did not answer last. machines, processes: of all.
    """

    machine: str
    id: str
    redis: str
    on_redis_lost: str | int
    lease: float
    phase: Literal["waiting", "leased", "fading", "lost"]
    age: float | None
    trouble: str
    machines: int
    processes: int
    pools: dict[str, MachinesPoolStats]


class ManagerStats(TypedDict):
    """A manager. epoch, server_pid: None where no server runs. machines: None where no machines share caps."""

    name: str
    epoch: int | None
    server_pid: int | None
    uptime: float
    processes: list[ProcessStats]
    pools: dict[str, PoolStats]
    budgets: dict[str, BudgetStats]
    tokens: list[TokenStats]
    token_costs: list[dict[str, object]]
    machines: MachinesStats | None


class AllStats(Protocol):
    """The statistics of the manager."""

    def __call__(self, *, survey: bool = False) -> ManagerStats:
        """survey: see Manager.stats."""

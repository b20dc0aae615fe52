"""What the parts of a pool in this process know of the pool as a whole, so that they need not import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mppool.worker.inventory import PoolEntry

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from mppool.core.decisions import Grant
    from mppool.core.events import Declaration
    from mppool.options import PoolOptions
    from mppool.recipe import Recipe
    from mppool.wire.messages import EndSessions
    from mppool.worker.context import Context
    from mppool.worker.hooks import Hooks
    from mppool.worker.idle import Idle
    from mppool.worker.inventory import Inventory


class Home(Protocol):
    """The pool that a resource belongs to, as the inventory knows it. Called with the inventory's lock held."""

    name: str

    @property
    def idle(self) -> Any:
        """What lies idle in it, and who waits. Kept by its resources, for a release to go there at once."""

    def shelf_of(self, key: str) -> deque[PoolEntry]:
        """Where it lies when it is idle."""

    def granted(self, entry: PoolEntry, grant: Grant, now: float) -> None:
        """It is in the table, and will be opened."""

    def opened(self, entry: PoolEntry, seconds: float, now: float) -> None:
        """It is open; that took so many seconds."""

    def closing(self, entry: PoolEntry) -> None:
        """It is being closed."""

    def gone(self, entry: PoolEntry) -> None:
        """It has left the table."""


class Runner(Protocol):
    """Runs checks, each beside its caller."""

    def run(self, check: Callable[[], None]) -> None:
        """Have it done at once. Raises RuntimeError where no thread is to be had."""


class Whose(Protocol):
    """For whom the pool's resources are: see Principals."""

    def needs_no_look(self, principal: Any) -> bool:
        """Whether nothing has to be asked of the credential now."""

    def may_insist(self, key: str) -> bool:
        """Whether the issuer is to be asked for another token now."""


class Fencing(Protocol):
    """What has to be ended at the database: see Fence."""

    def want(self, said: EndSessions) -> None:
        """This is to be ended."""

    def on_idle(self) -> None:
        """Do it on a resource that lies idle, if there is one."""

    def on(self, resource: Any) -> None:
        """Do it on this one, which nobody else uses."""


class OwnPool(Home, Protocol):
    """A LocalPool, as it is known below: to what ends, opens and checks resources, and to what decides for whom.

    Whatever stands in for a LocalPool offers this: it is all that dispatch, ending, checking and principals use.
    """

    options: PoolOptions
    recipe: Recipe[Any]
    member: Context
    inventory: Inventory
    idle: Idle
    default_key: str
    closed_everywhere: bool
    hooks: Hooks
    checks_here: bool

    @property
    def fence(self) -> Fencing:
        """Sessions of other machines that are to be ended."""

    @property
    def checkers(self) -> Runner:
        """Threads for checks."""

    @property
    def identities(self) -> Whose:
        """For whom its resources are."""

    @property
    def closed(self) -> bool:
        """Whether this process hands out nothing."""

    def entries(self) -> list[PoolEntry]:
        """All that this process holds of it."""

    def count(self, counter: str) -> None:
        """Count something rare."""

    def key_for(self, identity: str | None) -> str:
        """The key of what this pool opens for an identity."""

    def own_key_is(self, key: str) -> None:
        """`min_size`, and checkouts that name nobody, belong to this key from now on."""

    def declaration(self) -> Declaration:
        """This pool as the books are told of it."""

    def note_retired(self, generation: int, key: str | None) -> None:
        """What is granted in an older generation must end. Caller holds the inventory's lock."""

    def backend_failed(
        self, entry: PoolEntry, *, renewed: bool = False, hung: bool = False
    ) -> None:
        """What this resource was connected to is gone, and with it everything as old, in all processes."""

"""What the pools of a process share: the inventory, the way to the books, threads for hooks, timers, tokens."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, cast

from mppool import logs
from mppool.errors import PoolError
from mppool.ids import Ticket
from mppool.link.troubles import pool_error
from mppool.process.executor import BackgroundExecutor
from mppool.process.fork import notice_fork
from mppool.process.locks import release_own
from mppool.worker.demand import Silence
from mppool.worker.frames import forget_frames
from mppool.worker.inventory import Inventory

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.core.decisions import Grant
    from mppool.core.events import Event
    from mppool.link.protocol import Link
    from mppool.tokens.cache import TokenCache

OPENER_IDLE_S = 5.0
"""So long a thread that opens waits for the next opening: to start one takes longer than all else of a cold checkout."""

MOST_OPENERS = 1000
"""So many resources are opened at one time in this process: for each there is a thread that waits."""


class Keeper(Protocol):
    """Something else than pools that wants to be looked after now and then, in the background thread."""

    def look(self, now: float) -> float:
        """Do what is due, without waiting for anything; when to look again at the latest (NEVER: no need)."""

    def is_over(self) -> bool:
        """Whether it wants nothing any more."""


class Timers(Protocol):
    """The background thread, which wakes up when something is due."""

    def expects(self, due: float) -> None:
        """Something is due at this instant, of which the thread may not know yet."""

    def look_after(self, keeper: Keeper) -> None:
        """Have the thread look at it whenever it is awake, from now on."""


class LostAndFound(Protocol):
    """What finds resources that interrupted threads have lost: see audit.py."""

    def want(self) -> None:
        """Something may be lost: look soon."""

    def want_again(self) -> None:
        """Somebody waits: look again, if there was ever a reason to."""


class Context(ABC):
    """What all pools and threads of a process share of one manager. In a forked child its parts are replaced.

    inventory: what this process holds, with the one lock. link: the way to the books.
    chores: threads for what may take long; openers: for open hooks; asker: asks on behalf of tasks, which must not wait. A pool whose hooks run elsewhere (on an event loop)
        puts another executor in their place.
    housekeeper: timers. audit: finds what was lost. silence: whether the books have lately not answered.
    """

    link: Link
    housekeeper: Timers
    audit: LostAndFound
    tokens: TokenCache

    def __init__(self, name: str) -> None:
        self.name = name
        # A method of C: a thread that asks again and again pays for every function of Python that it passes.
        self.next_ticket = cast("Callable[[], Ticket]", itertools.count(1).__next__)
        self._secret: bytes | None = None
        self._begin()

    def _begin(self) -> None:
        """Start with nothing: in a new process, and in a forked child."""
        self.inventory = Inventory()
        self._secret = None  # a child may be another user's process, with another directory
        self.silence = Silence()
        self.leaving = False

        def expects(due: float) -> None:
            self.housekeeper.expects(due)

        self.chores = BackgroundExecutor(self.name, expects=expects)
        self.asker = BackgroundExecutor(f"{self.name}-ask", most=1)
        self.openers = BackgroundExecutor(
            f"{self.name}-open", idle_s=OPENER_IDLE_S, most=MOST_OPENERS, expects=expects
        )

    @property
    def is_sealed(self) -> bool:
        """Whether fingerprints may be told to others."""
        return self._secret is not None

    @abstractmethod
    def seal(self) -> None:
        """Have all fingerprints sealed, before anybody is told of them. The first time it may read a file."""

    # --- to the books ------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """Tell the books and return their answer; a Grant is registered in the table already."""
        notice_fork()
        try:
            return self.link.call(event, deadline)
        except (OSError, RuntimeError, UnicodeError) as error:
            told = pool_error(self.name, error)
            if told is None:
                raise
            raise told from error

    def tell(self, event: Event) -> None:
        """Tell the books, without an answer. Never blocks on the server."""
        notice_fork()
        self.inventory.tell(event)
        self.link.flush()

    def note(self, event: Event) -> None:
        """Tell the books what is worth knowing, if this process is attached to any."""
        if self.inventory.session is not None:
            self.tell(event)

    def decline(self, grant: Grant, inventory: Inventory) -> None:
        """A registered grant is not needed any more."""
        inventory.opening_ended(grant.number)
        self.link.flush()

    @abstractmethod
    def go_on(self, successor: Any) -> None:
        """What was closed for this entry is closed: it is opened now."""

    def is_gone(self) -> None:
        """One resource less: the books are told, and a process that is leaving may leave."""
        self.link.flush()
        if self.leaving:
            self.wake()  # this may have been the last

    def attend(self) -> None:
        """Hear, from soon on, what the server says to all."""
        self.chores.add(self.link.attend)

    # --- threads -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the background thread look around. Safe in a finalizer: it writes to a descriptor."""
        if not self.inventory.inherited:
            self.link.wake()

    def interrupted(self, error: BaseException) -> None:
        """A checkout or a release was left by an exception that is none of ours.

        It may have struck between any two instructions. Whatever the thread has left behind is put in
        order here, where that is one step, or found by the audit.
        """
        if isinstance(error, PoolError):
            return
        release_own(self.inventory.lock)
        self.chores.interrupted()
        self.openers.interrupted()
        self.link.interrupted()
        forget_frames(error)
        self.audit.want()
        logs.interrupted()

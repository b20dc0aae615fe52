"""Checkout for asyncio: what blocks happens in a thread, and never in the event loop's.

Checkouts of a pool wait in threads of that pool's own, not in the loop's executor: full of waiting checkouts, that
would never run what the holders of resources need it for (`asyncio.to_thread`, name look-ups). Giving back does
not wait behind them: it is a chore of the member, for which there is always a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.errors import CheckoutTimeout
from mppool.logs import Log
from mppool.process.executor import MOST_THREADS as MOST_WAITS
from mppool.worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mppool.worker.face import Face

    Blocking = Callable[[float | None], Lease[Any]]

T = TypeVar("T")

log = Log("mppool")

_START_S = 0.1
"""So long a free thread may take to begin; after that it is taken for granted that there is none."""


class AsyncLease(Lease[T]):
    """A lease for `async with`."""

    __slots__ = ()

    def __init__(self, lease: Lease[T]) -> None:
        self._face = lease._face
        held, lease._held = lease._held, []
        self._held = held

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_forked() or (error is None and self._face.plain):
            self.release()  # nothing but an append
            return
        # Shielded: a task that is cancelled here has given its lease back all the same.
        await asyncio.shield(_give_back(self, error))


def _give_back(lease: Lease[Any], error: BaseException | None) -> asyncio.Future[None]:
    """Leave the lease, in another thread, for a reset may take its time."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def chore() -> None:
        try:
            lease.__exit__(None if error is None else type(error), error, None)
        finally:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                log.debug("the event loop was closed before a lease had been given back")

    lease._face.member.chores.add(chore)
    return done


class _Attempt:
    """One checkout, for whose waiting there is a thread.

    _lot: one item, which is taken either by the thread that begins or by the loop that gives up before;
        popping it is atomic, as it is with `_got`.
    _got: what the thread has got, for whoever pops it. The thread appends first and reads `_given_up` then; the
        loop sets that first and looks into `_got` then. So one of the two gives it back, also where the loop
        ends before it hears of it.
    """

    def __init__(self, face: Face, seconds: float | None, blocking: Blocking) -> None:
        self._face = face
        self._seconds = seconds
        self._deadline = None if seconds is None else monotonic() + seconds
        self._blocking = blocking
        self._loop = asyncio.get_running_loop()
        self._lot = deque([None])
        self._got: deque[Lease[Any]] = deque()
        self._given_up = False
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def lease(self) -> Lease[Any]:
        """Wait for it. Cancelled, it is not begun any more, or what the thread still gets is given back."""
        timer = None
        if self._seconds is not None:
            timer = self._loop.call_later(self._seconds + _START_S, self._expire)
        try:
            self._begin()
            await self._done
            return self._got.pop()
        except GeneratorExit:  # perhaps by the garbage collector, in which no lock may be taken
            self._given_up = True
            raise
        except BaseException:
            self._given_up = True
            self._is_mine()
            if self._got:
                self._face.member.chores.add(self._give_back)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _begin(self) -> None:
        try:
            self._face.waits.add(self._run)
        except BaseException:
            self._face.waits.interrupted()
            raise

    def _is_mine(self) -> bool:
        """True for the first who asks."""
        try:
            self._lot.pop()
        except IndexError:
            return False
        return True

    def _run(self) -> None:
        """The thread's part."""
        if not self._is_mine():
            return
        failure = None
        left = None if self._deadline is None else max(0.0, self._deadline - monotonic())
        try:
            self._got.append(self._blocking(left))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is awaited
            failure = error
        try:
            self._loop.call_soon_threadsafe(self._settle, failure)
        except RuntimeError:  # the loop was closed
            self._given_up = True
        finally:
            failure = None  # its traceback refers to this frame
        if self._given_up:
            self._give_back()

    def _give_back(self) -> None:
        """In a thread, for a reset may take its time."""
        try:
            lease = self._got.pop()
        except IndexError:
            return  # somebody else does it, or there is none
        lease.release()

    def _settle(self, failure: BaseException | None) -> None:
        if self._done.done():
            return
        if failure is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(failure)

    def _expire(self) -> None:
        """All threads wait for others until now."""
        if self._is_mine() and not self._done.done():
            self._face.count("timeouts")
            self._done.set_exception(
                CheckoutTimeout(
                    f"pool {self._face.name!r}: nothing could be had within {self._seconds:g} s: "
                    f"{MOST_WAITS} asynchronous checkouts of this process wait already; release leases sooner, "
                    "raise max_size or wait longer"
                )
            )


class AsyncCheckout:
    """What `pool.acheckout()` returns: awaitable, and an asynchronous context manager."""

    __slots__ = ("_blocking", "_face", "_lease", "_seconds")

    def __init__(self, face: Face, seconds: float | None, blocking: Blocking) -> None:
        """seconds: to wait, from when this is awaited; `blocking` does it, within the seconds it is told."""
        self._face = face
        self._seconds = seconds
        self._blocking = blocking
        self._lease: AsyncLease[Any] | None = None

    async def _checkout(self) -> AsyncLease[Any]:
        lease = await _Attempt(self._face, self._seconds, self._blocking).lease()
        return lease.for_asyncio()

    def __await__(self) -> Any:
        return self._checkout().__await__()

    async def __aenter__(self) -> Any:
        self._lease = await self._checkout()
        return self._lease.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lease is not None
        await self._lease.__aexit__(kind, error, trace)

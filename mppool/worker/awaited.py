"""What `acheckout` of a pool returns: awaitable for the lease, and an asynchronous context manager of the resource."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
L = TypeVar("L", bound="AwaitedLease[object]")


class AwaitedLease(Protocol[T_co]):
    """A lease that is given back with `await`."""

    @property
    def resource(self) -> T_co:
        """The resource."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the resource back."""


class AwaitedCheckout(ABC, Generic[T, L]):
    """A checkout that has not begun: it begins when it is awaited, or entered. L: the lease that it gives."""

    __slots__ = ("_lease",)

    _lease: L

    @abstractmethod
    async def _checkout(self) -> L:
        """The lease."""

    def __await__(self) -> Generator[object, None, L]:
        return self._checkout().__await__()

    async def __aenter__(self) -> T:
        self._lease = await self._checkout()
        return self._lease.resource  # type: ignore[return-value]  # L is a lease of T

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._lease.__aexit__(kind, error, trace)

"""The same for asyncio: `manager.async_credential`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.core.tokens import FETCH_PATIENCE_S
from mppool.credentials.credential import RawToken, ask, checked_answer, is_async, request_options
from mppool.credentials.errors import OnlyHere
from mppool.credentials.shared import _KNOWN_OPTIONS, Shared, _Request

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo

    from mppool.credentials.credential_loops import CredentialLoops
    from mppool.tokens.cached_token import CachedToken

T = TypeVar("T")

_LOOK_S = 1.0

_Ready = tuple["CachedToken", "AccessToken"]


class AsyncSharedCredential(Shared):
    """An azure-core AsyncTokenCredential, and AsyncSupportsTokenInfo: see SharedCredential.

    The credential may be asynchronous (azure.identity.aio), or synchronous: that runs in a thread. A token
    that this process holds is handed out without giving way to other tasks; otherwise a thread asks the
    server, and tasks of one loop that want the same token wait for one such thread.

    Made by `manager.async_credential(credential, identity=...)`.
    """

    _asynchronous = True

    def __init__(self, manager: Any, credential: Any, *, identity: str | None = None) -> None:
        super().__init__(manager, credential, identity=identity)
        self._native = is_async(self.unshared)
        self._asking: dict[Any, asyncio.Future[_Ready]] = {}
        self._loops = self._tokens.loops

    def after_fork_in_child(self) -> None:
        """The loops of the parent do not run here."""
        super().after_fork_in_child()
        self._asking = {}

    def _here(self) -> Any:
        """What is asked in the running loop."""
        return self._loops.here(self.unshared) if self._native else self.unshared

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        timeout: float | None = None,  # of the wait in another process's queue
        **options: Any,
    ) -> AccessToken:
        """A token for the scopes: see SharedCredential.get_token."""
        if not claims and not options:
            ready = self._look((scopes, tenant_id, enable_cae))
            if ready is not None:
                return ready[1]
        if options or self._brought:
            self._check_open()
            asked = {"claims": claims, "tenant_id": tenant_id, "enable_cae": enable_cae, **options}
            answer: AccessToken = await self._itself(self._here().get_token, scopes, asked)
            return answer
        return (await self._get((scopes, tenant_id, enable_cae), claims, timeout))[1]

    async def get_token_info(
        self,
        *scopes: str,
        options: Any = None,
        timeout: float | None = None,
    ) -> AccessTokenInfo:
        """The same, with the time at which its issuer wants it refreshed, where it said one."""
        options = options or {}
        if self._brought or not _KNOWN_OPTIONS.issuperset(options):
            self._check_open()
            method = self._here().get_token_info
            answer: AccessTokenInfo = await self._itself(method, scopes, {"options": options})
            return answer
        claims = options.get("claims")
        request = (scopes, options.get("tenant_id"), bool(options.get("enable_cae")))
        ready = self._look(request) if not claims else None
        return self._as_info((ready or await self._get(request, claims, timeout))[0])

    async def close(self) -> None:
        """Close the credential that is wrapped: see SharedCredential.close."""
        if self._closed:
            return
        self._closed = self._tokens.closed = True
        self._ready.clear()
        await self._loops.close_copies()
        close = getattr(self.unshared, "close", None)
        if not callable(close):
            return
        if self._native:
            closing = close()
            if inspect.isawaitable(closing):
                await closing
        else:
            await self._in_thread(close)

    async def __aenter__(self) -> AsyncSharedCredential:  # noqa: PYI034  # typing.Self is newer than 3.10
        self._check_open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # --- how it is done ----------------------------------------------------------------------------------

    async def _get(self, request: _Request, claims: str | None, timeout: float | None) -> _Ready:
        """One thread for all tasks of this loop that want the same; a task that is cancelled ends no other."""
        self._check_open()
        loop = asyncio.get_running_loop()
        asked = (loop, request, claims, timeout)
        asking = self._asking.get(asked)
        if asking is None:
            asking = asyncio.ensure_future(self._ask(loop, request, claims, timeout))
            self._asking[asked] = asking
            asking.add_done_callback(lambda done: self._forget(asked, done))
        return await asyncio.shield(asking)

    def _forget(self, asked: Any, done: asyncio.Future[_Ready]) -> None:
        self._asking.pop(asked, None)
        if not done.cancelled():
            done.exception()  # looked at here, for every task that waited may have been cancelled

    async def _ask(
        self,
        loop: asyncio.AbstractEventLoop,
        request: _Request,
        claims: str | None,
        timeout: float | None,
    ) -> _Ready:
        scopes, tenant_id, enable_cae = request
        asker = asker_in(loop, self._loops) if self._native else ask
        held = await self._in_thread(
            lambda: self._tokens.hold(
                scopes,
                claims=claims or "",
                tenant_id=tenant_id or "",
                enable_cae=enable_cae,
                timeout=timeout,
                asker=asker,
            )
        )
        return self._make_ready(request, held)

    async def _itself(
        self, method: Callable[..., Any], scopes: tuple[str, ...], asked: dict[str, Any]
    ) -> Any:
        if self._native:
            return await method(*scopes, **asked)
        return await self._in_thread(lambda: method(*scopes, **asked))

    async def _in_thread(self, blocking: Callable[[], T]) -> T:
        """Not in the loop's executor: the credential may need that (for name look-ups) to make the fetch end
        for which all threads of the executor would wait here."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                outcome = _Outcome(blocking(), None)
            except BaseException as error:  # noqa: BLE001  # it is raised where it is awaited
                outcome = _Outcome(None, error)
            try:
                loop.call_soon_threadsafe(outcome.settle, done)
            except RuntimeError:
                return  # the loop was closed; nobody waits any more

        self._manager._member.chores.add(run)
        return await done


class _Outcome:
    """What a thread brings: a result or an exception."""

    def __init__(self, result: Any, error: BaseException | None) -> None:
        self._result = result
        self._error = error

    def settle(self, done: asyncio.Future[Any]) -> None:
        """Called in the loop."""
        if done.cancelled():
            return
        if self._error is None:
            done.set_result(self._result)
        else:
            done.set_exception(self._error)


def asker_in(loop: asyncio.AbstractEventLoop, loops: CredentialLoops) -> Callable[..., RawToken]:
    """What asks an asynchronous credential in this loop. It takes the arguments of `ask`, and is called in a thread."""

    def asker(credential: Any, scopes: tuple[str, ...], **asked: Any) -> RawToken:
        return _ask_in_loop(loop, loops, credential, scopes, **asked)

    return asker


def _ask_in_loop(
    loop: asyncio.AbstractEventLoop,
    loops: CredentialLoops,
    credential: Any,
    scopes: tuple[str, ...],
    *,
    claims: str,
    tenant_id: str,
    enable_cae: bool,
    may_prompt: bool,
) -> RawToken:
    """Have the loop that the credential lives in ask it. Called in a thread."""
    if loop.is_closed():
        raise LoopEnded("the event loop in which this credential was used has ended")
    options = request_options(claims, tenant_id, enable_cae)
    asking = _asking(loops, credential, scopes, options)
    try:
        future = asyncio.run_coroutine_threadsafe(asking, loop)
    except RuntimeError as error:
        asking.close()
        raise LoopEnded(str(error)) from error
    answer = _answer_of(future, loop, None if may_prompt else FETCH_PATIENCE_S)
    return checked_answer(answer, credential)


def _answer_of(
    future: concurrent.futures.Future[Any], loop: asyncio.AbstractEventLoop, patience: float | None
) -> Any:
    """A loop that has stopped answers nothing, so it is looked at now and then."""
    deadline = math.inf if patience is None else monotonic() + patience
    while True:
        try:
            return future.result(_LOOK_S)
        except concurrent.futures.CancelledError as error:
            raise LoopEnded("the task that fetched the token was cancelled") from error
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # it is the credential's own
            if loop.is_closed() or monotonic() >= deadline:
                future.cancel()
                raise LoopEnded("the event loop of this credential does not answer") from None


class LoopEnded(OnlyHere):
    """An asynchronous credential cannot be asked any more: its event loop has ended."""


async def _asking(
    loops: CredentialLoops, credential: Any, scopes: tuple[str, ...], options: dict[str, Any]
) -> Any:
    credential = loops.here(credential)
    if callable(getattr(credential, "get_token_info", None)):
        return await credential.get_token_info(*scopes, options=options)
    return await credential.get_token(*scopes, **options)

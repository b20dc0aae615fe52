"""Serves one stream in a host: one worker, one lease at a time, in one thread."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.errors import OpenFailed, PoolError, ProtocolError
from mppool.hosting import frames
from mppool.hosting.asked import error_body
from mppool.hosting.lending import Lending
from mppool.hosting.requests import Gone, Requests
from mppool.hosting.values import encode
from mppool.ids import ProcessId, own_process
from mppool.logs import Log
from mppool.rendezvous.liveness import watch_peer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mppool.hosting.keeping import Kept
    from mppool.hosting.pipes import Turns
    from mppool.stats.pins import Pins
    from mppool.worker.pool import Pool

log = Log("mppool.hosting")

_asking: ContextVar[Session | None] = ContextVar("mppool-hosting-asking", default=None)
"""Whose checkout this is. A thread that opens on behalf of another one has a copy of its context."""

_ATTACH_S = 30.0


def ask_for_token(refused: bool) -> Any:
    """A token of the worker on whose behalf this thread opens; None: no credential is involved.

    refused: the last one was. None too where nobody asks for what is opened. Raises what the credential has raised.
    """
    session = _asking.get()
    return None if session is None else session.token(refused)


class Session:
    """One stream. `serve` is its thread; the host's own thread looks at it now and then.

    _busy: guards what the host's thread may do to a lease that is quiet; held while a call runs.
    _exchange: guards the socket while a checkout is under way, because the thread that opens may ask for a token on it.
    """

    def __init__(
        self,
        connection: socket.socket,
        number: int,
        pool: Pool[Any],
        epoch: int,
        *,
        watch: Callable[[Session], None],
        leave: Callable[[Session], bool],
        tell_of_kept: Callable[[], None],
        is_leaving: Callable[[], bool],
        session_of: Callable[[int], Session | None],
        kept: Kept | None,
        pins: Pins,
        turns: Turns,
    ) -> None:
        """watch: has its process watched. leave: told that a worker asks the host to leave. session_of: by its number.
        tell_of_kept: called when a lease is kept. is_leaving: whether the host lends nothing any more. kept: what the host keeps for its workers; None: nothing.
        pins: what ties leases of the host to their sessions. turns: of all streams of the host.
        """
        self.connection = connection
        self._requests = Requests(connection, turns)
        self._read, self._send = self._requests.read, self._requests.send
        self.number = number
        self.process: ProcessId | None = None
        self.pidfd: int | None = None
        self.linger = 0.0
        self._pool = pool
        self._epoch = epoch
        self._watch, self._leave = watch, leave
        self._tell_of_kept = tell_of_kept
        self._is_leaving = is_leaving
        self._session_of = session_of
        self._lending = Lending(pool, kept, pins)
        self._kept = kept
        self._busy = threading.Lock()
        self._exchange = threading.Lock()
        self._in_checkout = False
        self._has_token = False
        self.is_running = False
        self.is_gone = False
        self.last_heard = monotonic()
        self._plain = msgspec.msgpack.Decoder()

    # --- the thread -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the worker closes the stream, or is dead. Whatever it has is given back then."""
        is_clean, busy, lending = True, self._busy, self._lending
        try:
            while True:
                body = self._read()
                with busy:
                    self.is_running = True
                    if self.is_gone:  # looked at after that was set: see worker_is_gone
                        raise Gone
                    is_clean = False
                    self._serve(body)
                    self.is_running, is_clean = False, True
                    self.last_heard = monotonic()
                if lending.is_kept and lending.is_wanted():
                    self.call_in()  # somebody has begun to wait, and found us busy
        except Gone:
            pass
        except OSError as error:
            log.debug("a stream has ended: %s", error)
        except (ProtocolError, msgspec.MsgspecError, ValueError, TypeError) as error:
            log.warning("a worker sent what the protocol does not allow: %s", error)
        finally:
            self.is_gone = True
            with self._busy:
                # Between two calls it is given back, which rolls back; in the middle of one nobody knows.
                self._lending.end(frames.GIVEN_BACK if is_clean else frames.DISCARDED)
            self._requests.close()

    def _serve(self, body: Any) -> None:
        lending = self._lending
        try:
            lease, op, freed, *said = lending.decode(body)
        except (PoolError, ImportError) as error:
            self._send(frames.ERROR, error_body(error))
            return
        found = _HANDLERS.get(op)
        if found is None:
            raise ProtocolError(f"an unknown request {op!r}")
        handler, has_lease, may_pin = found
        if has_lease:
            if lease != lending.number or not lending.is_out:
                if op == frames.RELEASE:  # it is not waited for; what it means has ended already
                    lending.keep_nothing(*said[1:])
                else:
                    self._refuse_lease(lease)
                return
            if lending.is_kept:
                lending.is_used()
            if freed:
                lending.forget(freed)
        try:
            handler(self, *said)
            if may_pin:
                lending.look()
        except Gone:
            raise
        except Exception as error:  # noqa: BLE001  # it is the worker's to see
            self._send(frames.ERROR, error_body(error))

    def _refuse_lease(self, lease: int) -> None:
        if lease > self._lending.number:
            raise ProtocolError(f"lease {lease} was never given")
        self._send(frames.ERROR, error_body(self._lending.stale()))

    # --- requests ---------------------------------------------------------------------------------------------

    def _hello(
        self,
        protocol: int,
        pid: int,
        birth: int,
        member: int,
        linger: float,
        has_pipes: bool = False,
    ) -> None:
        if protocol != frames.PROTOCOL:
            self._send(
                frames.ERROR,
                error_body(
                    ProtocolError(f"the host speaks protocol {frames.PROTOCOL}, not {protocol}")
                ),
            )
            raise Gone
        self.process = ProcessId(pid, birth, member)
        self.pidfd = watch_peer(self.connection, self.process)
        if self.pidfd is None:
            raise Gone
        self.linger = linger
        self._watch(self)
        own = own_process()
        body = encode([self._epoch, self.number, own.pid, own.birth])
        right = self._lending.right
        has_kept = right is not None and self._kept is not None
        more = [right.fileno(), self._kept.flag.fileno()] if has_kept else []  # type: ignore[union-attr]
        self._requests.send_first(frames.VALUE, body, more, has_pipes=has_pipes)

    def _checkout(
        self,
        timeout: float | None,
        identity: str | None,
        has_token: bool,
        label: str = "",
        caller: str = "",
        lane: str | None = None,
    ) -> None:
        if self._is_leaving() and not self._lending.is_out:
            raise Gone  # the worker looks for another host, or starts it
        if self._lending.is_kept and self._lending.asked_for(identity, label, caller):
            self._introduce()
            return
        if self._lending.is_out:
            raise ProtocolError("a checkout on a stream that has a lease")
        token = _asking.set(self)
        self._has_token, self._in_checkout = has_token, True
        try:
            self._lending.take(timeout, identity, label, caller, lane)
        finally:
            with self._exchange:  # nobody asks for a token from now on
                self._in_checkout = False
            _asking.reset(token)
        self._introduce()

    def _introduce(self) -> None:
        self._send(frames.VALUE, encode([self._lending.number, *self._lending.introduced()]))

    def token(self, refused: bool) -> Any:
        """Ask the worker, whose checkout is under way. Called by the thread that opens."""
        if not self._has_token:
            return None
        with self._exchange:
            if not self._in_checkout:
                raise OpenFailed("the worker that could give a token does not wait any more")
            self._send(frames.TOKEN_WANTED, encode([refused]))
            _, op, _, found, expires_on, error = self._plain.decode(self._read())
        if op != frames.TOKEN:
            raise ProtocolError("something else than a token has come")
        if error is not None:
            raise OpenFailed(error)
        if found is None:
            return None
        from mppool.credentials.token_struct import TokenInfo

        return TokenInfo(found, expires_on, None)

    def _release(self, how: int, keeps: bool) -> None:
        self.is_running = False  # what resets is not cancelled where the worker ends right after it
        if keeps:
            self._lending.keep()
            if self._lending.is_kept:
                self._tell_of_kept()
        else:
            self._lending.end(how)

    def _call(self, handle: int, name: str, args: Any, kwargs: Any) -> None:
        use = self._lending.touched("", ())
        if not handle:
            self._lending.ends_transaction(name)
        self._send(*use.call(handle, name, args, kwargs))

    def _run(self, handle: int, of_connection: bool, name: str, args: Any, kwargs: Any) -> None:
        kind, body = self._lending.run(
            handle, of_connection, name, args, kwargs, may_replace=not self._has_token
        )
        self._send(kind, body)

    def _execute(self, handle: int, of_connection: bool, statement: str, parameters: Any) -> None:
        if type(parameters) is list:
            parameters = tuple(parameters)
        self._send(
            *self._lending.execute(
                handle, of_connection, statement, parameters, not self._has_token
            )
        )

    def _fetch(self, handle: int, count: int | None) -> None:
        for kind, body in self._lending.living().fetch(handle, count):
            self._send(kind, body)

    def _get(self, handle: int, name: str) -> None:
        self._send(*self._lending.living().get(handle, name))

    def _set(self, handle: int, name: str, value: Any) -> None:
        self._send(*self._lending.touched(name, (value,)).set(handle, name, value))

    def _invalidate(self, renewed: bool) -> None:
        self._lending.invalidate(renewed)
        self._send(frames.VALUE, encode([]))

    def _cancel(self, number: int, lease: int) -> None:
        """Of another stream, whose worker waits for a call there."""
        session = self._session_of(number)
        told = session is not None and session.cancel(lease)
        self._send(frames.VALUE, encode([told]))

    def _leave_asked(self) -> None:
        self._send(frames.VALUE, encode([self._leave(self)]))

    def _attach(self) -> None:
        link: Any = self._pool._local.member.link
        link.ensure_session(monotonic() + _ATTACH_S)
        self._send(frames.VALUE, encode([]))

    # --- called by other threads ------------------------------------------------------------------------------

    def cancel(self, lease_number: int) -> bool:
        """See Lending.cancel."""
        return self._lending.cancel(lease_number)

    def worker_is_gone(self) -> None:
        """The process is dead, or has closed the stream: what runs on its behalf is cancelled."""
        self.is_gone = True
        self.cancel_for_the_gone()
        self._requests.end()

    def cancel_for_the_gone(self) -> None:
        """Nobody waits for what runs. In a thread, because a cancel may take its time; again and again, for one that comes
        before the driver has begun does nothing.
        """
        if self.is_gone and self.is_running:
            threading.Thread(
                target=self.cancel, args=(0,), name="mppool-cancel", daemon=True
            ).start()

    def end_if_quiet(self, now: float, longest_s: float) -> None:
        """A lease whose worker has said nothing for so long ends; the resource is reset and goes on."""
        lending = self._lending
        if not lending.is_out or self.is_running or now - self.last_heard < longest_s:
            return
        if not self._busy.acquire(blocking=False):
            return  # it has just said something
        try:
            if not lending.is_out or now - self.last_heard < longest_s:
                return
            lending.why_over = f"its worker said nothing for max_quiet={longest_s:g} s, so what was open in it was rolled back"
            log.warning(
                "pool %r: a lease of process %s has ended: %s",
                self._pool.name,
                self.process,
                lending.why_over,
            )
            lending.end(frames.GIVEN_BACK)
        finally:
            self._busy.release()

    @property
    def has_lease(self) -> bool:
        """Whether a resource is lent on this stream, and its worker may be using it."""
        return self._lending.is_out and not self._lending.is_kept

    def is_kept_since(self) -> float | None:
        """Since when a lease is kept for its worker; None: none is."""
        return self._lending.kept_at if self._lending.is_kept else None

    def call_in(self) -> bool:
        """End the lease that is kept for the worker, if it has not taken it. True: a resource has come back."""
        if not self._lending.is_kept or not self._busy.acquire(blocking=False):
            return False  # it looks by itself when it is not busy any more
        try:
            return self._lending.is_kept and self._lending.call_in()
        finally:
            self._busy.release()


_HANDLERS: dict[int, tuple[Callable[..., None], bool, bool]] = {
    frames.HELLO: (Session._hello, False, False),
    frames.CHECKOUT: (Session._checkout, False, False),
    frames.RELEASE: (Session._release, True, False),
    frames.CALL: (Session._call, True, True),
    frames.RUN: (Session._run, True, True),
    frames.EXECUTE: (Session._execute, True, True),
    frames.FETCH: (Session._fetch, True, True),
    frames.GET: (Session._get, True, False),
    frames.SET: (Session._set, True, False),
    frames.INVALIDATE: (Session._invalidate, True, False),
    frames.CANCEL: (Session._cancel, False, False),
    frames.LEAVE: (Session._leave_asked, False, False),
    frames.ATTACH: (Session._attach, False, False),
}
"""What serves a request, whether it needs a lease, and whether it may tie that to its session."""

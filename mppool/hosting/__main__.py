"""The host process: what launch.py starts.

It begins as a child of the process that wanted it, detaches itself, and only then imports the application's recipe. Its
arguments are: runtime directory, name of the manager, path of its socket, its number. What else it must know comes in
through its standard input.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from mppool.hosting.host import Host
    from mppool.hosting.travel import Luggage
    from mppool.worker.member import Member

log = logging.getLogger("mppool.hosting")

_READINESS_DESCRIPTOR = 3
_CLOSE_PATIENCE_S = 5.0
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
_IGNORED_AS_WELL = (signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: list[str]) -> None:
    """Serve in this process, which is detached already."""
    os.set_inheritable(_READINESS_DESCRIPTOR, False)
    answer = b"F"
    try:
        _settle_in()
        answer = _serve(arguments)
    except Exception:
        log.exception("the host failed")
    finally:
        _tell(answer)
        logging.shutdown()
        os._exit(0)


def _serve(arguments: list[str]) -> bytes:
    from mppool.hosting.travel import Luggage
    from mppool.rendezvous.readiness import LONGEST_ANSWER, READY, REFUSED

    runtime_dir, manager, path, number = arguments
    with os.fdopen(0, "rb", closefd=False) as pipe:
        luggage = msgspec.msgpack.decode(pipe.read(), type=Luggage)
    _quiet_input()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s host {number} of {luggage.pool} %(levelname)s %(message)s",
    )
    try:
        member, host = _made(runtime_dir, manager, Path(path), int(number), luggage)
        host.listen()
    except Exception as error:
        log.exception("the recipe cannot be used")
        return (
            REFUSED
            + f"{type(error).__name__}: {error}".encode(errors="replace")[: LONGEST_ANSWER - 1]
        )
    signal.set_wakeup_fd(host.wake_up_descriptor, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: host.leave())
    _tell(READY)
    log.info("serves as process %d", os.getpid())
    host.serve()
    member.leave(_CLOSE_PATIENCE_S)
    log.info("leaves")
    return READY


def _made(
    runtime_dir: str, manager: str, path: Path, number: int, luggage: Luggage
) -> tuple[Member, Host]:
    """An ordinary member of the manager with one pool, and what lends its resources to workers."""
    from mppool.hosting.host import Host
    from mppool.hosting.session import ask_for_token
    from mppool.hosting.travel import WithTokens, unpickled
    from mppool.link.server_link import ServerLink
    from mppool.rendezvous.locator import ServerLocator
    from mppool.worker.member import Member, name_process
    from mppool.worker.pool import Pool

    name_process(f"host {number} of {luggage.pool}")
    locator = ServerLocator(manager, runtime_dir, luggage.linger)
    member = Member(manager, lambda made: ServerLink(made, locator))
    recipe: Any = unpickled(luggage)
    if recipe.token_scope is not None:
        recipe = WithTokens(recipe, ask_for_token, had_credential=luggage.has_credential)
    if luggage.options.budget is not None and luggage.budget is not None:
        member.declare_budget(luggage.options.budget, luggage.budget)
    local = member.declare(luggage.pool, recipe, luggage.options)
    stats: Any = member.link.stats
    pool: Pool[Any] = Pool(local, stats, (_not_pickled, ()))
    return member, Host(pool, path, luggage.linger)


def _not_pickled() -> Any:
    raise TypeError("the pool of a host is not pickled")


def _settle_in() -> None:
    """Be independent of the process that started the host."""
    faulthandler.enable()  # into the log
    os.umask(0o077)
    for number in (*_IGNORED_SIGNALS, *_IGNORED_AS_WELL):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # unlimited, beyond fs.nr_open
        log.warning("the descriptor limit cannot be raised: %s", error)


def _quiet_input() -> None:
    """The pipe is at its end; nobody reads it any more."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    sys.stdin = None


_has_told: list[bytes] = []


def _tell(answer: bytes) -> None:
    """Say it to the process that waits for the start, if nothing was said yet."""
    if _has_told:
        return
    _has_told.append(answer)
    try:
        os.write(_READINESS_DESCRIPTOR, answer)
    except OSError as error:
        log.debug("nobody waits for the host any more: %s", error)
    os.close(_READINESS_DESCRIPTOR)

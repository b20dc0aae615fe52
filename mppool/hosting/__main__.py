"""The host process: what launch.py starts.

It begins as a child of the process that wanted it, detaches itself, and only then imports the application's recipe. Its
arguments are: runtime directory, name of the manager, path of its socket, its number. What else it must know comes in
through its standard input.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.rendezvous.detached import StartPipe, settle_in, told_in_secret
from mppool.rendezvous.readiness import FAILED, LONGEST_ANSWER, READY, REFUSED
from mppool.rendezvous.spawning import READINESS_DESCRIPTOR

if TYPE_CHECKING:
    from mppool.hosting.host import Host
    from mppool.hosting.travel import Luggage
    from mppool.worker.member import Member

log = logging.getLogger("mppool.hosting")

_CLOSE_PATIENCE_S = 5.0


def main(arguments: list[str]) -> None:
    """Serve in this process, which is detached already."""
    pipe = StartPipe(READINESS_DESCRIPTOR)
    try:
        settle_in()
        _serve(pipe, arguments)
    except Exception:
        log.exception("the host failed")
    finally:
        pipe.tell(FAILED)
        logging.shutdown()
        os._exit(0)


def _serve(pipe: StartPipe, arguments: list[str]) -> None:
    from mppool.hosting.travel import Luggage

    runtime_dir, manager, path, number = arguments
    luggage = msgspec.msgpack.decode(told_in_secret(), type=Luggage)
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s host {number} of {luggage.pool} %(levelname)s %(message)s",
    )
    try:
        member, host = _made(runtime_dir, manager, Path(path), int(number), luggage)
        host.listen()
    except Exception as error:
        log.exception("the recipe cannot be used")
        text = f"{type(error).__name__}: {error}".encode(errors="replace")
        pipe.tell(REFUSED + text[: LONGEST_ANSWER - 1])
        return
    signal.set_wakeup_fd(host.wake_up_descriptor, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: host.leave())
    pipe.tell(READY)
    log.info("serves as process %d", os.getpid())
    host.serve()
    member.leave(_CLOSE_PATIENCE_S)
    log.info("leaves")


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

"""The detached server process: what launch.py starts.

It begins as a child of the process that wanted it, detaches itself, and only then imports what it
needs. Its arguments are: descriptor of the readiness pipe, runtime directory, manager name, linger.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from mppool.rendezvous.detached import StartPipe, settle_in, told_in_secret
from mppool.rendezvous.readiness import ANOTHER, FAILED, LONGEST_ANSWER, READY, REFUSED
from mppool.server.title import Title

log = logging.getLogger("mppool.server")


def main(arguments: list[str]) -> None:
    """Serve in this process, which is detached already, and leave with exit status 0."""
    pipe = StartPipe(int(arguments[0]))
    runtime_dir, name, linger = Path(arguments[1]), arguments[2], float(arguments[3])
    try:
        title = Title(name)  # before the memory is private
        os.chdir("/")
        settle_in()
        _serve(pipe, runtime_dir, name, linger, told_in_secret(), title)
    except Exception:
        log.exception("the server failed")
    finally:
        pipe.tell(FAILED)
        logging.shutdown()
        # 0 whatever happened: as process 1 of a container gunicorn adopts orphans, and takes an exit
        # status of 3 for that of a worker of its own.
        os._exit(0)


def _serve(
    pipe: StartPipe, runtime_dir: Path, name: str, linger: float, told: bytes, title: Title
) -> None:
    # Imported late: by now the signals that could end us are taken care of.
    from mppool.errors import ConfigurationError, ServerUnavailable
    from mppool.rendezvous.paths import ManagerPaths
    from mppool.server.logfile import BoundedLog
    from mppool.server.loop import Server

    paths = ManagerPaths(runtime_dir, name)
    handler = BoundedLog(paths.log)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    machines = None
    if told:
        from mppool.machines.settings import unpacked

        machines = unpacked(told)

    def keep_up(processes: int, pools: int) -> None:
        handler.put_back()
        title.show(processes, pools)

    server = Server(paths, linger=linger, keep_up=keep_up, machines=machines)
    try:
        server.open()
    except ServerUnavailable as error:
        log.info("%s", error)
        pipe.tell(ANOTHER)
        return
    except ConfigurationError as error:
        log.error("%s", error)
        pipe.tell(REFUSED + str(error).encode(errors="replace")[: LONGEST_ANSWER - 1])
        return
    signal.set_wakeup_fd(server.wake_up_descriptor, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: server.leave())
    pipe.tell(READY)
    server.serve_forever()
    handler.tidy()

"""The detached server process: what launch.py starts.

It begins as a child of the process that wanted it, detaches itself, and only then imports what it
needs. Its arguments are: descriptor of the readiness pipe, runtime directory, manager name, linger.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
from pathlib import Path

from mppool.rendezvous.readiness import ANOTHER, FAILED, LONGEST_ANSWER, READY, REFUSED
from mppool.server.libc import forbid_core_dumps
from mppool.server.title import Title

log = logging.getLogger("mppool.server")

_IGNORED_SIGNALS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,  # Ctrl-\, which dumps core
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)


class StartPipe:
    """The pipe to the process that started the server, which waits for one byte. It is used once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        os.set_inheritable(descriptor, False)

    def tell(self, answer: bytes) -> None:
        """Say it, if nothing was said yet: one byte, and perhaps a text."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.write(descriptor, answer)
        except OSError as error:
            log.debug("nobody waits for the server any more: %s", error)
        os.close(descriptor)


def main(arguments: list[str]) -> None:
    """Serve in this process, which is detached already, and leave with exit status 0."""
    pipe = StartPipe(int(arguments[0]))
    runtime_dir, name, linger = Path(arguments[1]), arguments[2], float(arguments[3])
    try:
        title = Title(name)  # before the memory is private
        _settle_in()
        _serve(pipe, runtime_dir, name, linger, _told_in_secret(), title)
    except Exception:
        log.exception("the server failed")
    finally:
        pipe.tell(FAILED)
        logging.shutdown()
        # 0 whatever happened: as process 1 of a container gunicorn adopts orphans, and takes an exit
        # status of 3 for that of a worker of its own.
        os._exit(0)


def _told_in_secret() -> bytes:
    """What the process that started this one has put into the pipe; from now on there is nothing to be read."""
    told = b"".join(iter(lambda: os.read(0, 65536), b""))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return told


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


def _settle_in() -> None:
    """Be independent of the process that started the server."""
    faulthandler.enable()  # into the log
    os.chdir("/")
    os.umask(0o077)
    _keep_memory_private()
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # unlimited, beyond fs.nr_open
        log.warning("the descriptor limit cannot be raised: %s", error)


def _keep_memory_private() -> None:
    """Tokens of all processes lie in it: nothing of it is ever written to a core file."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if not forbid_core_dumps():
        log.warning("core dumps that are piped to a program cannot be forbidden")

"""What the server and every host do first: they outlive the process that started them, and keep their memory to themselves.

Also the two pipes to that process: what it tells them comes in through the standard input, where no list of processes
shows it, and how the start went goes back.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys

from mppool.rendezvous.libc import forbid_core_dumps

log = logging.getLogger(__name__)

_IGNORED_SIGNALS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,  # Ctrl-\, which dumps core
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)


class StartPipe:
    """The pipe to the process that has started this one, which waits for one byte. It is used once."""

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
            log.debug("nobody waits for this process any more: %s", error)
        os.close(descriptor)


def settle_in() -> None:
    """Be independent of the process that started this one."""
    faulthandler.enable()  # into the log
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


def told_in_secret() -> bytes:
    """All that comes in through the standard input; from now on there is nothing to be read."""
    told = b"".join(iter(lambda: os.read(0, 65536), b""))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = None
    return told

"""Starts a process that outlives its starter: the server, or a host. It says in a pipe how that went."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mppool.rendezvous.readiness import FAILED, LONGEST_ANSWER

if TYPE_CHECKING:
    from pathlib import Path

READINESS_DESCRIPTOR = 3


def bootstrap(module: str, take_path: str) -> str:
    """Code that runs in the new interpreter before anything of ours: nobody's child first, then `main` of the module.

    take_path: what is done with the list of places to import from, which is its first argument. The exit status is 0
    in any case: a process that reaps it may take another one for that of a worker of its own.
    """
    return f"""\
import os, sys
try:
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > {READINESS_DESCRIPTOR}:
            try: os.close(fd)
            except OSError: pass
    import json
    {take_path} json.loads(sys.argv[1])
    from {module} import main
    main(sys.argv[2:])
except BaseException:
    import traceback
    traceback.print_exc()
    os.write({READINESS_DESCRIPTOR}, {FAILED!r})
finally:
    sys.stderr.flush()
    os._exit(0)
"""


def spawn(
    arguments: list[str],
    environment: Mapping[str, str],
    standard_input: int | None,
    log: Path,
    readiness: int,
) -> int:
    """Start an interpreter; the pid of its short-lived first process.

    standard_input: a descriptor to read from; None: there is nothing to be read. log: takes what it prints.
    readiness: the pipe in which it says how its start went.

    posix_spawn and not os.fork: no Python code runs in a copy of a process with threads, and no fork
    hooks run. Its own process group at once: a Ctrl-C meant for the starter does not reach it.
    """
    import fcntl

    # Above 3, so that dup2 really duplicates, which clears close-on-exec.
    high = [fcntl.fcntl(readiness, fcntl.F_DUPFD_CLOEXEC, 10)]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    try:
        if standard_input is None:
            actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        else:
            high.append(fcntl.fcntl(standard_input, fcntl.F_DUPFD_CLOEXEC, 10))
            actions.append((os.POSIX_SPAWN_DUP2, high[1], 0))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions += [
            (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, high[0], READINESS_DESCRIPTOR),
        ]
        return os.posix_spawnp(
            arguments[0],
            arguments,
            environment,
            file_actions=actions,
            setpgroup=0,
            setsigmask=[],
            setsigdef=_settable_signals(),
        )
    finally:
        for descriptor in high:
            os.close(descriptor)


def _settable_signals() -> list[int]:
    return [
        number
        for number in range(1, signal.NSIG)
        if number not in {signal.SIGKILL, signal.SIGSTOP} and number in signal.valid_signals()
    ]


def answer_of(reading: int, until: float) -> bytes | None:
    """What the new process says; b"" if it ended without a word, None if it is too late."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return None
        if poll.poll(left * 1000):
            return os.read(reading, LONGEST_ANSWER)


def reap(child: int, *, patient: bool) -> None:
    """Take the exit status of the first process, which ends as soon as it has forked.

    Somebody else's waitpid(-1) may have taken it: web servers' masters do that. Where we must not wait,
    a thread waits.
    """

    def wait() -> None:
        try:
            os.waitpid(child, 0)
        except ChildProcessError:
            pass  # reaped already

    if patient:
        wait()
    else:
        _in_thread(wait)


def _in_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="mppool-reaper", daemon=True).start()

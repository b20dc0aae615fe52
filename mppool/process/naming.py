"""What the program that runs this process calls it: a web server's worker, or a task queue's.

Nothing is imported here, and nothing depends on it: where a program has changed, its workers bear its name only.
"""

from __future__ import annotations

import signal
import sys
from pathlib import PurePath
from typing import Any

_PROGRAMS = ("gunicorn", "uvicorn", "celery", "uwsgi", "hypercorn", "granian", "daphne", "waitress")


def found_name() -> str:
    """Such as "gunicorn worker 3"; "" where no program that is known runs this process."""
    if "uwsgi" in sys.modules:  # its own module, which exists in its processes only
        return _numbered("uwsgi", getattr(sys.modules["uwsgi"], "worker_id", int)())
    program = _program()
    if program == "gunicorn":
        return _of_gunicorn()
    if program == "celery":
        return _of_processes(program, "billiard.process")
    return _of_processes(program, "multiprocessing.process") if program else ""


def _program() -> str:
    """The program that was started, also in a process that it has spawned."""
    path = PurePath(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name  # python -m
    return name if name in _PROGRAMS else ""


def _numbered(program: str, number: object) -> str:
    return f"{program} worker {number}" if number else program


def _of_gunicorn() -> str:
    """A worker is the owner of its signal handlers, and so is the master."""
    owner: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if type(owner).__module__.partition(".")[0] != "gunicorn":
        return (
            "gunicorn"  # not started yet, or a class of workers that handles signals in its own way
        )
    name = getattr(getattr(owner, "cfg", None), "proc_name", "gunicorn")
    age = getattr(owner, "age", None)
    return f"{name} worker {age}" if age else f"{name} master"


def _of_processes(program: str, module: str) -> str:
    """By the running number of the process, as in SpawnProcess-3 and ForkPoolWorker-3."""
    current = getattr(sys.modules.get(module), "current_process", None)
    name = "" if current is None else str(current().name)
    kind, _, number = name.rpartition("-")
    return _numbered(program, number if kind and number.isdigit() else "")

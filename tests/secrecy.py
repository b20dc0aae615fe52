"""No secret may be seen: the whole test run is watched for the mark that every token and password of it bears.

Watched are, in the processes of the tests and in all that they fork: what mppool logs, at DEBUG and with its
tracebacks; errors of mppool, their causes and tracebacks; statistics; the runtime directories with the
server's log, the journal and the names of the files; what interpreters that tests start print. A test with
tokens asks for its objects' reprs besides.

Forked children report through the file that they inherit; a test that a report came from fails at its end.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool.azure.clients import ClientPool
from mppool.base_manager import Manager
from mppool.compat.proxypatternpool import Pool as CompatPool
from mppool.errors import PoolError
from mppool.worker.pool import Pool

MARK = "Zq7Secret"
"""In every token, secret and password of the tests, unless it is about that very text."""

# As text, and as drivers want it. Zero bytes are left out of files, so the second is found there too.
_FORMS = (MARK, "\\x00".join(MARK), "\0".join(MARK))
_LOGGERS = ("mppool", "ppp")
_LONGEST_REPORT = 3000
_EVERYTHING = 1  # below DEBUG, so that it can be told from a level that a test has set


def shows_secret(text: str) -> bool:
    """Whether the mark is in it, in any form."""
    return any(form in text for form in _FORMS)


class Watch:
    """What was seen, in this process and its forked children."""

    def __init__(self) -> None:
        # Kept as long as the run. A fork shares its position: reports of several processes follow each other.
        self._file = os.memfd_create("secrecy")
        self._taken = 0

    def see(self, where: str, text: str) -> None:
        """Report it if it shows a secret."""
        if shows_secret(text):
            os.write(self._file, f"{where}: {text[:_LONGEST_REPORT]}\n".encode())

    def see_files(self, directory: Path) -> None:
        """All files below the directory, and their names."""
        for path in directory.rglob("*"):
            self.see("a name in the runtime directory", str(path))
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue  # its owner has just left
            self.see(f"the file {path.name}", content.replace(b"\0", b"").decode("latin-1"))

    def see_objects(self) -> None:
        """The reprs of all objects of mppool's classes that exist in this process."""
        for one in gc.get_objects():
            if not str(type(one).__module__).startswith("mppool."):
                continue
            try:
                self.see(f"the repr of a {type(one).__name__}", repr(one))
            except Exception as error:  # half made, or half gone
                self.see("the error of a repr", str(error))

    def take(self) -> list[str]:
        """What was reported since the last call."""
        length = os.fstat(self._file).st_size - self._taken
        reports = os.pread(self._file, length, self._taken)
        self._taken += len(reports)
        return reports.decode(errors="replace").splitlines()


WATCH = Watch()


def _watch_logs() -> None:
    """Everything is looked at, and what would have been logged without that goes on to the handlers.

    Not more, for a test that forks: a thread that is writing to one of pytest's files at that moment leaves
    the file's lock behind, held for ever, and the child stops where it logs next.
    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(_EVERYTHING)
    formatter = logging.Formatter()
    handle = logging.Logger.callHandlers

    def watched(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in _LOGGERS:
            WATCH.see("the log", formatter.format(record))
            level = self.getEffectiveLevel()
            if record.levelno < (logging.getLogger().level if level == _EVERYTHING else level):
                return
        handle(self, record)

    logging.Logger.callHandlers = watched  # type: ignore[method-assign]


def _watch_results(cls: type, name: str) -> None:
    """Of statistics."""
    method: Callable[..., Any] = getattr(cls, name)

    @functools.wraps(method)
    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        result = method(self, *arguments, **options)
        WATCH.see(f"{cls.__name__}.{name}", repr(result))
        return result

    setattr(cls, name, watched)


def _watch_errors() -> None:
    """When they are made, for nobody may ever catch them; and when a test does, with causes and traceback."""
    made = PoolError.__init__

    def watched_init(self: PoolError, *arguments: Any) -> None:
        made(self, *arguments)
        WATCH.see(f"a {type(self).__name__}", repr(arguments))

    PoolError.__init__ = watched_init  # type: ignore[method-assign]
    kind: Any = type(pytest.raises(PoolError))
    leave = kind.__exit__

    def watched_exit(self: Any, cls: Any, error: Any, trace: Any) -> Any:
        if isinstance(error, PoolError):
            WATCH.see("a traceback", "".join(traceback.format_exception(error)))
        return leave(self, cls, error, trace)

    kind.__exit__ = watched_exit


def install() -> None:
    """Watch this process, and those that it will fork."""
    _watch_logs()
    for cls in (Manager, Pool, ClientPool, CompatPool):
        _watch_results(cls, "stats")
    _watch_errors()

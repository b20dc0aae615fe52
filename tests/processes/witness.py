"""An independent witness: a counting echo server in a process of its own, and its clients.

Each connection is a session. It answers every line with its own number in front, so that an answer meant
for somebody else is seen at once. A session counts only while the process that opened it lives and has its
end open (rule 9 of the design: a copy of the descriptor in a forked child, or a backend that is slow to
notice, holds nothing; a process that has execed another program holds nothing any more). `peak` is the
largest number that counted at one time, `logins` the largest number that logged in at one time.

Run as a program: python -m tests.processes.witness SOCKET
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mppool import Opening, Recipe

# --- the server ---------------------------------------------------------------------------------------


class _Counted:
    """A session, as the server sees it."""

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self.end = ("", "")
        """Where the client's end is seen in /proc, and what is to be seen there."""
        self.logs_in = False
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it died before we looked
            self.pidfd = -1
        self.buffer = b""

    def is_held(self) -> bool:
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(0):
            return False
        path, seen = self.end
        try:
            return not path or os.readlink(path) == seen
        except OSError:  # it is closed, or its process has just died
            return False

    def forget(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)


class _Server:
    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1024)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.sessions: dict[socket.socket, _Counted] = {}
        self.opened = self.peak = self.logins = 0
        self.cap = 0
        self.over: list[list[int]] = []

    def serve(self) -> None:
        while True:
            # Ends before openings: what was closed before something else was opened is not held with it.
            ready = [key.fileobj for key, _ in self.selector.select()]
            for sock in ready:
                if sock is not self.listener:
                    self._read(sock)  # type: ignore[arg-type]
            if self.listener in ready:
                self._accept()

    def _accept(self) -> None:
        sock, _ = self.listener.accept()
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        sock.setblocking(False)
        self.sessions[sock] = _Counted(0, pid)
        self.selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        counted = self.sessions[sock]
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(sock)
            return
        *lines, counted.buffer = (counted.buffer + data).split(b"\n")
        for line in lines:
            if not self._answer(sock, counted, line.decode()):
                return

    def _answer(self, sock: socket.socket, counted: _Counted, line: str) -> bool:
        if line.startswith("open "):
            self.opened += 1
            counted.number = self.opened
            _, descriptor, inode = line.split()
            counted.end = (f"/proc/{counted.pid}/fd/{descriptor}", f"socket:[{inode}]")
            held = self.held()
            self.peak = max(self.peak, len(held))
            if self.cap and len(held) > self.cap:
                self.over.append([one.pid for one in held])
            answer = str(counted.number)
        elif line in ("login", "logged in"):
            counted.logs_in = line == "login"
            self.logins = max(self.logins, sum(one.logs_in for one in self.held()))
            answer = "ok"
        elif line == "close":
            self._drop(sock, answer=b"closed\n")
            return False
        elif line.startswith("cap "):
            self.cap = int(line[4:])
            answer = "ok"
        elif line == "figures":
            held = self.held()
            answer = json.dumps(
                {
                    "opened": self.opened,
                    "peak": self.peak,
                    "logins": self.logins,
                    "held": len(held),
                    "pids": sorted(one.pid for one in held),
                    "over": self.over[:20],
                }
            )
        else:
            answer = f"{counted.number} {line}"
        try:
            sock.send(answer.encode() + b"\n")
        except OSError:
            self._drop(sock)
            return False
        return True

    def _drop(self, sock: socket.socket, answer: bytes = b"") -> None:
        """The session has ended when its client is told so."""
        self.sessions.pop(sock).forget()
        self.selector.unregister(sock)
        if answer:
            try:
                sock.send(answer)
            except OSError:
                pass  # the client did not wait for it
        sock.close()

    def held(self) -> list[_Counted]:
        return [
            one
            for sock, one in self.sessions.items()
            if one.number and one.is_held() and not _has_ended(sock)
        ]


def _has_ended(sock: socket.socket) -> bool:
    """Whether its client has closed it, and we have only not read so far."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


# --- its clients --------------------------------------------------------------------------------------


class WrongAnswer(AssertionError):
    """A session got what was meant for another."""


class Session:
    """The resource: a connection to the witness. Used by two at once, or over a fork, it notices."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.asked = 0
        self.buffer = b""
        try:
            inode = os.fstat(self.sock.fileno()).st_ino
            self.number = int(self._exchange(f"open {self.sock.fileno()} {inode}"))
        except BaseException:
            self.sock.close()  # interrupted: an open hook that fails must leave nothing open
            raise

    def ask(self, text: str = "") -> str:
        """One exchange, whose answer must be ours."""
        self.asked += 1
        question = f"{os.getpid()}.{threading.get_ident()}.{self.asked} {text}"
        answer = self._exchange(question)
        if answer != f"{self.number} {question}":
            raise WrongAnswer(f"session {self.number} asked {question!r} and got {answer!r}")
        return answer

    def _exchange(self, line: str) -> str:
        self.sock.sendall(line.encode() + b"\n")
        while b"\n" not in self.buffer:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionError(f"session {getattr(self, 'number', '?')} was ended")
            self.buffer += data
        answer, _, self.buffer = self.buffer.partition(b"\n")
        return answer.decode()

    def log_in(self, seconds: float) -> None:
        """Take a while to open. The witness counts how many do that at a time."""
        self._exchange("login")
        time.sleep(seconds)
        self._exchange("logged in")

    def __del__(self) -> None:
        self.sock.close()  # not a word is said; without this every test would have to close its pools

    def close(self) -> None:
        """Ends the session for all who hold a copy of its descriptor, as a database's goodbye does."""
        try:
            self._exchange("close")
        finally:
            self.sock.close()


class SessionRecipe(Recipe[Session]):
    """Opens sessions with a witness."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, opening: Opening) -> Session:
        return Session(self.path)

    def fingerprint(self) -> str:
        return f"witness at {self.path}"


class Witness:
    """The witness's process, as the tests see it."""

    def __init__(self, path: Path, cap: int = 0) -> None:
        self.path = str(path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.witness", self.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        if cap:
            self._ask(f"cap {cap}")

    def recipe(self) -> SessionRecipe:
        return SessionRecipe(self.path)

    def figures(self) -> dict[str, Any]:
        """opened, peak, logins, held (sessions whose opener has them), pids (of their openers), over."""
        figures: dict[str, Any] = json.loads(self._ask("figures"))
        return figures

    def _ask(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(line.encode() + b"\n")
            return sock.makefile().readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def main(path: str) -> None:
    server = _Server(path)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1])

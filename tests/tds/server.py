"""The process of the TDS double: a thread per session, a record of each, orders as lines of JSON.

Every order on stdin gets one answer on stdout; the end of stdin ends the process.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.tds import packets
from tests.tds.packets import Gone, Login, Message, Wire


@dataclass
class Session:
    """What is remembered of one connection that tried to log in."""

    number: int
    token: str | None = None
    user: str = ""
    application: str = ""
    accepted: bool = False
    open: bool = True
    at: float = 0.0
    statements: list[str] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)
    """Before which statement each reset came: the number of statements that went before it."""
    transactions: list[str] = field(default_factory=list)
    """Requests to the transaction manager."""


class Server:
    """_lock guards `sessions`, `_sockets`, `refused`, `_passwords`, `user_connections` and `may_see_all`."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self._lock = threading.Lock()
        self.sessions: list[Session] = []
        self._sockets: dict[int, socket.socket] = {}
        # What is refused: a token, a user, or "*" for everybody, with the text of error 18456.
        self.refused: dict[str, str] = {}
        self._passwords: dict[str, str] = {}
        # The setting of `sys.configurations`, and whether users may see other sessions than their own.
        self.user_connections = 0
        self.may_see_all = True
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listening.getsockname()[1]

    def serve(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        session = None
        try:
            wire = Wire(sock, *self._files)
            wire.send(packets.RESULT, packets.prelogin_answer(wire.receive().data))
            if not wire.strict:
                wire.secure()
            login = packets.parse_login(wire.receive().data)
            session = self._enter(login, sock)
            if refusal := self._refusal(login):
                wire.send(packets.RESULT, packets.error(18456, refusal))
                return
            session.accepted = True
            wire.send(
                packets.RESULT,
                packets.logged_in(
                    login.database, strict=wire.strict, with_token=login.token is not None
                ),
            )
            while True:
                wire.send(packets.RESULT, self._answer(session, wire.receive()))
        except (Gone, OSError):
            return
        finally:
            if session is not None:
                session.open = False
            sock.close()

    def _enter(self, login: Login, sock: socket.socket) -> Session:
        with self._lock:
            number = len(self.sessions) + 51
            session = Session(
                number, login.token, login.user, login.application, at=time.monotonic()
            )
            self.sessions.append(session)
            self._sockets[number] = sock
        return session

    def _refusal(self, login: Login) -> str | None:
        who = login.user if login.token is None else login.token
        with self._lock:
            expected = self._passwords.get(login.user)
            if self._passwords and login.token is None and login.password != expected:
                return f"Login failed for user '{login.user}'."
            return self.refused.get(who) or self.refused.get("*")

    # --- requests -----------------------------------------------------------------------------------

    def _answer(self, session: Session, message: Message) -> bytes:
        before = b""
        if message.status & (packets.RESET_CONNECTION | packets.RESET_KEEPING_TRANSACTION):
            session.resets.append(len(session.statements))
            before = packets.RESET_DONE
        if message.kind == packets.ATTENTION:
            return packets.done(status=0x20)
        if message.kind == packets.TRANSACTION_MANAGER:
            return before + self._transaction(session, packets.after_headers(message.data))
        if message.kind == packets.SQL_BATCH:
            statement = packets.after_headers(message.data).decode("utf-16-le")
            session.statements.append(statement)
            return before + self._result(session, statement)
        return packets.error(50000, f"the double knows no message of type {message.kind}")

    def _transaction(self, session: Session, request: bytes) -> bytes:
        (kind,) = struct.unpack_from("<H", request)
        descriptor = b"\x08" + struct.pack("<Q", session.number)
        name = {5: "begin", 7: "commit", 8: "rollback"}[kind]
        session.transactions.append(name)
        if name == "begin":
            return packets.changed(8, descriptor, b"\0") + packets.done()
        # Nothing changes where nothing was begun, but the driver does not mind being told.
        return packets.changed(9 if name == "commit" else 10, b"\0", descriptor) + packets.done()

    def _result(self, session: Session, statement: str) -> bytes:
        if "sys.dm_exec_sessions" in statement:
            return self._survey(session, statement)
        return _result(session, statement)

    def _survey(self, session: Session, statement: str) -> bytes:
        """The limit, the sessions of users, and those whose program begins with the prefix that the statement names.

        As SQL Server does: whoever may not see the server's state is shown the own session only.
        """
        prefix = re.search(r"left\(program_name, (\d+)\) = '((?:[^']|'')*)'", statement)
        if prefix is None or "name = 'user connections'" not in statement:
            return packets.error(208, "the double does not know this view")
        with self._lock:
            seen = [one for one in self.sessions if one.open and one.accepted]
            if not self.may_see_all:
                seen = [session]
            length, text = int(prefix[1]), prefix[2].replace("''", "'")
            ours = sum(one.application[:length] == text for one in seen)
            return packets.one_row([self.user_connections, len(seen), ours])

    # --- orders -------------------------------------------------------------------------------------

    def obey(self, order: dict[str, Any]) -> Any:
        with self._lock:
            match order["order"]:
                case "sessions":
                    return [asdict(session) for session in self.sessions]
                case "counts":
                    return [len(self.sessions), sum(session.open for session in self.sessions)]
                case "refuse":
                    self.refused[order["who"]] = order["text"]
                case "accept":
                    self.refused.pop(order["who"], None)
                case "password":
                    self._passwords[order["user"]] = order["password"]
                case "limit":
                    self.user_connections = order["user_connections"]
                    self.may_see_all = order["may_see_all"]
                case "kill":
                    for session in self.sessions:
                        if session.open and order["number"] in (None, session.number):
                            self._sockets[session.number].shutdown(socket.SHUT_RDWR)
                case "forget":
                    self.sessions = [session for session in self.sessions if session.open]
                case other:
                    raise ValueError(other)
        return None


def _result(session: Session, statement: str) -> bytes:
    """`SELECT 7`, `SELECT 'text'`, `SELECT spid`, `SLEEP 0.1`, `FAIL`; anything else is done and silent."""
    words = statement.split()
    if statement.upper() == "SELECT SPID":
        return packets.one_value(session.number)
    if found := re.fullmatch(r"SELECT (-?\d+)", statement, re.IGNORECASE):
        return packets.one_value(int(found[1]))
    if found := re.fullmatch(r"SELECT N?'(.*)'", statement, re.IGNORECASE):
        return packets.one_value(found[1])
    if words[:1] == ["SLEEP"]:
        time.sleep(float(words[1]))
    if words[:1] == ["FAIL"]:
        return packets.error(50000, "as ordered", severity=16)
    return packets.done()


def main() -> None:
    server = Server(*sys.argv[1:3])
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.port, flush=True)
    for line in sys.stdin:
        print(json.dumps(server.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""A real PostgreSQL of the tests' own: own data directory, own port, stopped at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mppool.odbc import driver_manager
from tests.helpers import free_port

DRIVER = "PostgreSQL Unicode"

WITH_PASSWORD = "with_password"
"""A group role: its members must say their password, all others are let in as they are."""


def what_is_missing() -> str | None:
    """Why no PostgreSQL can be used here, or None."""
    if _programs() is None:
        return "PostgreSQL's initdb and pg_ctl are not installed (Debian: postgresql)"
    if DRIVER not in driver_manager.load().drivers():
        return f"the ODBC driver '{DRIVER}' is not installed (Debian: odbc-postgresql)"
    if os.geteuid() == 0 and not _has_user("postgres"):
        return "root may not run PostgreSQL, and there is no user postgres to run it as"
    return None


class PostgresqlFailed(Exception):
    """A program of PostgreSQL's failed; the message holds what it printed."""


class Postgresql:
    """A running server, as its clients see it; each test gets a database of its own in it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._databases = 0
        self._admin: Any = None

    def connection_string(self, database: str) -> str:
        """How OdbcRecipe or pyodbc connects to one of the databases."""
        return f"Driver={DRIVER};Server=127.0.0.1;Port={self.port};Database={database};UID=postgres;PWD=unused"

    def query(self, statement: str, *parameters: Any) -> list[Any]:
        """Execute as administrator, outside of any pool."""
        if self._admin is None:
            pyodbc = driver_manager.load()
            self._admin = pyodbc.connect(self.connection_string("postgres"), autocommit=True)
        cursor = self._admin.execute(statement, *parameters)
        return cursor.fetchall() if cursor.description else []

    def create_database(self) -> Database:
        """A new, empty database. Its name is that of no other process's."""
        self._databases += 1
        name = f"test_{os.getpid()}_{os.urandom(4).hex()}_{self._databases}"
        self.query(f"create database {name}")
        return Database(self, name)

    def create_role(self, password: str) -> str:
        """A new user who must say this password. Its name is that of no other process's."""
        if not self.query("select 1 from pg_roles where rolname = ?", WITH_PASSWORD):
            self.query(
                f"do $$ begin create role {WITH_PASSWORD}; exception when others then null; end $$"
            )
        name = f"user_{os.getpid()}_{os.urandom(4).hex()}"
        quoted = password.replace("'", "''")
        self.query(f"create role {name} login password '{quoted}' in role {WITH_PASSWORD}")
        return name

    def disconnect(self) -> None:
        """End the administrator's session."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None


class PostgresqlServer(Postgresql):
    """One that this process starts and stops."""

    def __init__(self) -> None:
        super().__init__(0)
        self._directory = Path(tempfile.mkdtemp(prefix="mppool-pg-", dir="/tmp"))
        if os.geteuid() == 0:
            shutil.chown(self._directory, "postgres")
        self._data = self._directory / "data"
        self._run(
            "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        # Roles that are members of this one must say their password.
        access = self._data / "pg_hba.conf"
        line = f"host all +{WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\n"
        access.write_text(line + access.read_text())

    def start(self, port: int | None = None) -> None:
        """Start on a free port, or on that one, and wait until it answers."""
        for attempt in range(5):
            self.port = port or free_port()
            options = (
                f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' "
                "-c fsync=off -c max_connections=400"
            )
            try:
                self._run(
                    "pg_ctl",
                    "-D",
                    self._data,
                    "-l",
                    self._directory / "log",
                    "-w",
                    "-o",
                    options,
                    "start",
                )
                break
            except PostgresqlFailed:
                if attempt == 4:
                    raise
                # Somebody else may have taken the port in between.

    def halt(self, mode: str = "fast") -> None:
        """Stop the server, as an administrator would; `start` starts it again, on another port."""
        self.disconnect()
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def stop(self) -> None:
        """Stop the server and remove its directory."""
        self.disconnect()
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._directory)

    def _run(self, program: str, *arguments: Any) -> None:
        programs = _programs()
        assert programs is not None
        command: Sequence[str] = [str(programs / program), *map(str, arguments)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # Not through pipes: the server would inherit them, and they would never end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                timeout=50,
            )
            if done.returncode:
                output.seek(0)
                raise PostgresqlFailed(f"{program}: {output.read()}")


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """A server for all xdist workers, see tests/sharing.py."""
    server = PostgresqlServer()
    try:
        server.start()
        yield {"port": server.port}
    finally:
        server.stop()


class Database:
    """One database, and the witness of how many sessions it has."""

    def __init__(self, server: Postgresql, name: str) -> None:
        self._server = server
        self.name = name
        self.port = server.port
        self.connection_string = server.connection_string(name)

    @property
    def server(self) -> Postgresql:
        """The server that it is in."""
        return self._server

    def session_pids(self) -> set[int]:
        """The backends that serve a session in this database, as PostgreSQL counts them."""
        rows = self._server.query("select pid from pg_stat_activity where datname = ?", self.name)
        return {row[0] for row in rows}

    def held(self) -> int:
        """How many sessions have a client: a backend that was told to end may need a while for it."""
        rows = self._server.query(
            "select client_port from pg_stat_activity where datname = ?", self.name
        )
        there = f":{self.port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        established = {
            int(local.rpartition(":")[2], 16)
            for _, local, remote, state, *_ in lines
            if remote.endswith(there) and state == "01"
        }
        return sum(row[0] in established for row in rows)

    def states(self) -> list[str]:
        """What the sessions do: 'idle', 'idle in transaction', ..."""
        rows = self._server.query("select state from pg_stat_activity where datname = ?", self.name)
        return sorted(row[0] or "" for row in rows)

    def end_sessions(self) -> None:
        """End all sessions from the server's side, as an administrator or a failover would."""
        self._server.query(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = ?",
            self.name,
        )

    def drop(self) -> None:
        """Remove the database, and whatever sessions it still has."""
        self._server.query(f"drop database {self.name} with (force)")


def _programs() -> Path | None:
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True

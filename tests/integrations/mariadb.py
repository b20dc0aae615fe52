"""A real MariaDB of the tests' own: own data directory, own port, stopped at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers import free_port, wait_until
from tests.secrecy import MARK

PASSWORD = f"{MARK}mariadb"


def what_is_missing() -> str | None:
    """Why no MariaDB can be used here, or None."""
    if _program("mariadbd") is None or _program("mariadb-install-db") is None:
        return "MariaDB is not installed (Debian: mariadb-server)"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """A server for all xdist workers, see tests/sharing.py."""
    directory = Path(tempfile.mkdtemp(prefix="mppool-maria-", dir="/tmp"))
    process = None
    try:
        port = free_port()
        process = _start(directory, port)
        yield {"port": port, "user": "shop", "password": PASSWORD}
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(directory)


def _start(directory: Path, port: int) -> subprocess.Popen[bytes]:
    data, socket = directory / "data", directory / "s"
    as_user = []
    if os.geteuid() == 0:
        as_user = ["--user=mysql"]
        shutil.chown(directory, "mysql")
    with (directory / "log").open("wb") as log:
        subprocess.run(
            [_program("mariadb-install-db") or "", "--no-defaults", f"--datadir={data}", *as_user,
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=50, cwd="/",
        )  # fmt: skip
        first = directory / "init.sql"
        first.write_text(
            "CREATE DATABASE shop;\n"
            f"CREATE USER shop@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO shop@'127.0.0.1';\n"
        )
        first.chmod(0o644)
        process = subprocess.Popen(
            [_program("mariadbd") or "", "--no-defaults", f"--datadir={data}", *as_user,
             "--bind-address=127.0.0.1", f"--port={port}", f"--socket={socket}", "--skip-name-resolve",
             f"--pid-file={directory / 'pid'}", f"--init-file={first}",
             "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
        )  # fmt: skip
    wait_until(
        lambda: socket.exists() or process.poll() is not None, "MariaDB to listen", timeout=40
    )
    if process.poll() is not None:
        raise RuntimeError((directory / "log").read_text())
    return process

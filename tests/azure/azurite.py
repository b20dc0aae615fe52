"""Azurite, Microsoft's own emulator of Blob Storage: installed once per machine, started where tests want it.

Installed outside the repository (365 MB), in $XDG_CACHE_HOME/mppool-tests or ~/.cache/mppool-tests, with npm.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tests.helpers import PATIENCE, component_is_missing
from tests.secrecy import MARK

VERSION = "3.37"

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that every Azurite has (documented by Microsoft; no secret)."""

INSTALL_S = 240.0


def cache() -> Path:
    """Where it is installed, for all runs of the tests on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mppool-tests" / f"azurite-{VERSION}"


def installed() -> Path:
    """The script to run with node; installed if it is missing. Skips the test where that cannot be done."""
    script = cache() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            component_is_missing(
                f"there is no {command}, which Azurite needs (tools/system-packages)"
            )
    cache().parent.mkdir(parents=True, exist_ok=True)
    try:
        # Several workers of pytest-xdist may want it at once. Its name is the sign that it is complete.
        with FileLock(f"{cache()}.lock", timeout=INSTALL_S):
            if not script.exists():
                _install()
    except Timeout:
        component_is_missing("another process did not finish installing Azurite")
    return script


def _install() -> None:
    unfinished = cache().with_name(f"{cache().name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(unfinished)]
    try:
        done = subprocess.run(
            [*command, f"azurite@{VERSION}"], capture_output=True, text=True, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired:
        component_is_missing(f"npm did not install azurite@{VERSION} within {INSTALL_S:.0f} s")
    if done.returncode:
        component_is_missing(f"npm cannot install azurite@{VERSION}: {done.stderr[-500:]}")
    unfinished.rename(cache())


class Azurite:
    """A running one."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self.certificate = certificate

    @property
    def url(self) -> str:
        """Of the account."""
        return f"https://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """With the account's key."""
        return (
            f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.url};"
        )

    def connections_of(self, *pids: int) -> int:
        """TCP connections to it that these processes (this one, by default) have open."""
        return sum(_connections(pid, self.port) for pid in pids or (os.getpid(),))


def _connections(pid: int, port: int) -> int:
    """Established ones, looked up by the sockets that the process holds."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}"):
            inodes.add(f"socket:[{fields[9]}]")
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held += os.readlink(descriptor) in inodes
        except FileNotFoundError:
            continue  # closed while we looked
    return held


@contextmanager
def running(directory: Path) -> Iterator[Azurite]:
    """Start one on a free port, with a certificate of its own; end it."""
    script = installed()
    certificate, key = _certificate(directory)
    log = directory / "azurite.log"
    for _ in range(3):  # somebody may take the port first
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [
            "node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port),
            "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence",
            "--cert", str(certificate), "--key", str(key), "--oauth", "basic",
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=output)
        try:
            if _listens(process, port):
                yield Azurite(port, certificate)
                return
        finally:
            process.terminate()
            process.wait(PATIENCE)
    component_is_missing(f"Azurite does not start: {log.read_text()[-500:]}")


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """One for all xdist workers, see tests/sharing.py."""
    directory = Path(tempfile.mkdtemp(prefix="mppool-azurite-", dir="/tmp"))
    try:
        with running(directory) as azurite:
            yield {"port": azurite.port, "certificate": str(azurite.certificate)}
    finally:
        shutil.rmtree(directory)


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def _certificate(directory: Path) -> tuple[Path, Path]:
    """One that is its own authority, so that clients need one file."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    certificate.write_bytes(chain + authority.cert_pem.bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


def token(seconds: float = 3600.0) -> str:
    """An access token with the claims that Azurite looks at; it does not check the signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{uuid.UUID(int=1)}/",
        "iat": now - 60,
        "nbf": now - 60,
        "exp": now + int(seconds),
        "jti": str(uuid.uuid4()),
    }
    return ".".join((_part({"alg": "RS256", "typ": "JWT"}), _part(claims), MARK))


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Credential:
    """A credential as applications write them: its tokens are good for Azurite. `asked`: how often it was asked."""

    def __init__(self, identity: str | None = None) -> None:
        self.identity = identity
        self.asked = 0

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        self.asked += 1
        return AccessToken(token(), int(time.time()) + 3600)


class AsyncCredential(Credential):
    """The same for asyncio."""

    async def get_token(self, *scopes: str, **options: Any) -> Any:  # type: ignore[override]
        return super().get_token(*scopes, **options)

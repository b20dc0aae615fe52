"""What tests hold of the TDS double: start it, read what it has recorded, give it orders."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import ROOT, wait_until

EXPIRED = "Login failed for user '<token-identified principal>'. Token is expired."


@dataclass(frozen=True)
class Seen:
    """One session, as the double has recorded it."""

    number: int
    token: str | None
    user: str
    application: str
    accepted: bool
    open: bool
    at: float
    statements: list[str]
    resets: list[int]
    transactions: list[str]


class TdsDouble:
    """A process of its own, so that forks of the test hold none of its sockets."""

    def __init__(self, directory: Path, driver: Path) -> None:
        certificate, key = make_certificate(directory)
        self.driver = driver
        self.certificate = certificate
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tds.server", str(certificate), str(key)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ordering = threading.Lock()
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.communicate()  # the end of its orders
        assert self._process.returncode == 0

    def connection_string(self, more: str = "") -> str:
        """For a caller with a token; `UID=...;PWD=...` as `more` for one without."""
        return (
            f"Driver={self.driver};Server=127.0.0.1,{self.port};Encrypt=yes;"
            f"TrustServerCertificate=yes;{more}"
        )

    def strict_connection_string(self) -> str:
        return (
            f"Driver={self.driver};Server=127.0.0.1,{self.port};Encrypt=strict;"
            f"ServerCertificate={self.certificate};"
        )

    # --- what it has seen ---------------------------------------------------------------------------

    def sessions(self) -> list[Seen]:
        """All, refused logins too, in the order of their logins."""
        return [Seen(**one) for one in self._order("sessions")]

    def open_sessions(self) -> list[Seen]:
        return [session for session in self.sessions() if session.open and session.accepted]

    def logins(self) -> int:
        """How many have tried to log in."""
        return int(self._order("counts")[0])

    def wait_for_open(self, count: int) -> list[Seen]:
        """The client's close is seen a moment after it has returned."""
        wait_until(
            lambda: len(self.open_sessions()) == count, f"{count} open sessions at the double"
        )
        return self.open_sessions()

    # --- what it is to do ---------------------------------------------------------------------------

    def refuse(self, who: str = "*", text: str = EXPIRED) -> None:
        """Refuse a token or a user ("*": everybody) from now on, with error 18456 and this text."""
        self._order("refuse", who=who, text=text)

    def accept(self, who: str = "*") -> None:
        self._order("accept", who=who)

    def expect_password(self, user: str, password: str) -> None:
        """From now on logins without a token need one of the passwords that were told."""
        self._order("password", user=user, password=password)

    def limit(self, user_connections: int, *, may_see_all: bool = True) -> None:
        """From now on this is the setting "user connections". may_see_all: the right VIEW SERVER STATE."""
        self._order("limit", user_connections=user_connections, may_see_all=may_see_all)

    def kill(self, number: int | None = None) -> None:
        """End a session, or all, as KILL does."""
        self._order("kill", number=number)

    def forget(self) -> None:
        """Forget what is over."""
        self._order("forget")

    def _order(self, order: str, **details: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._ordering:
            self._process.stdin.write(json.dumps({"order": order, **details}) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "double.pem", directory / "double.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files

"""The two options of a PoolManager: where Redis is, and what to do without it. Checked when they are given.

They may hold a password: they travel to the server through a pipe, and to other processes as a keyed hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from urllib.parse import urlsplit

import msgspec

from mppool.errors import ConfigurationError
from mppool.machines.address import ALLOWED, AddressError, parsed
from mppool.machines.timing import LEASE_S, LEAST_LEASE_S, LONGEST_LEASE_S

LEASE_VARIABLE = "MPPOOL_MACHINE_LEASE"
HOLD = "hold"


class Settings(msgspec.Struct, frozen=True, omit_defaults=True):
    """url: of Redis, perhaps with a password. fallback: the share of this machine without Redis; None: none ("hold").

    ends_expired: sessions of machines whose leases have run out are ended at the database.
    """

    url: str
    fallback: int | None
    lease_s: float
    ends_expired: bool = False

    def __repr__(self) -> str:
        more = ", end_expired=True" if self.ends_expired else ""
        return f"<Redis at {self.where}, on_redis_lost={self.on_redis_lost!r}{more}>"

    @property
    def on_redis_lost(self) -> str | int:
        """As it is given to a PoolManager."""
        return HOLD if self.fallback is None else self.fallback

    @property
    def where(self) -> str:
        """For people: the URL without user, password and parameters."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    def fingerprint(self, secret: bytes) -> str:
        """The same in all processes of a machine that have the same settings; it gives away no password."""
        return hashlib.blake2b(self.packed(), key=secret[:64], digest_size=16).hexdigest()

    def packed(self) -> bytes:
        """For the pipe to the server."""
        return msgspec.json.encode(self)


def unpacked(packed: bytes) -> Settings:
    """What came through the pipe."""
    return msgspec.json.decode(packed, type=Settings)


def checked_settings(
    manager: str, redis: object, on_redis_lost: object, end_expired: object = False
) -> Settings | None:
    """The settings, None where no Redis is named, or ConfigurationError."""
    fallback = _checked_fallback(manager, on_redis_lost)
    if not isinstance(end_expired, bool):
        raise ConfigurationError(
            f"manager {manager!r}: end_expired={end_expired!r:.80} is not allowed: give True or False"
        )
    if redis is None:
        if end_expired:
            raise ConfigurationError(
                f"manager {manager!r}: end_expired=True means nothing without redis="
            )
        if fallback is not None:
            raise ConfigurationError(
                f"manager {manager!r}: on_redis_lost={on_redis_lost!r} means nothing without redis="
            )
        return None
    _check_url(manager, redis)
    assert isinstance(redis, str)
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            f"manager {manager!r}: redis= needs the client of Redis: pip install 'mppool[redis]'"
        )
    return Settings(redis, fallback, _lease_s(manager), end_expired)


def _checked_fallback(manager: str, value: object) -> int | None:
    if value == HOLD and isinstance(value, str):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise ConfigurationError(
        f"manager {manager!r}: on_redis_lost={value!r:.80} is not allowed: give {HOLD!r}, or the share of this "
        "machine while Redis is lost, a whole number, 0 or more"
    )


def _check_url(manager: str, url: object) -> None:
    """Says nothing of the URL itself: it may hold a password."""
    try:
        parsed(url)
    except AddressError as error:
        raise ConfigurationError(
            f"manager {manager!r}: redis= is not allowed: {error}; {ALLOWED}"
        ) from None


def _lease_s(manager: str) -> float:
    text = os.environ.get(LEASE_VARIABLE)
    if not text:
        return LEASE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST_LEASE_S <= seconds <= LONGEST_LEASE_S:
        raise ConfigurationError(
            f"manager {manager!r}: ${LEASE_VARIABLE}={text!r:.40} is not allowed: give seconds, "
            f"{LEAST_LEASE_S:g} to {LONGEST_LEASE_S:g}, the same on all machines"
        )
    return seconds

"""What a client is asked for: by whom, and for which target. Secrets are in keys only as keyed hashes."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import secrets
import weakref
from collections.abc import Callable, Hashable
from typing import Any
from urllib.parse import parse_qs

from mppool.azure.lending import lend
from mppool.azure.live_sas import live_sas
from mppool.credentials.credential import check_credential, is_async
from mppool.credentials.extra import needed_for
from mppool.credentials.objects import serial_of
from mppool.errors import ConfigurationError

DEFAULT_IDLE_TTL_S = 1800.0

_DIGEST = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=16)
"""With a key of this process, so that what is seen of it says nothing of the secret."""


class Asked:
    """A credential and a target, and whether the client is to be asynchronous.

    key: equal for everything that shares a client, within this process.
    serial: of a credential object whose end is to be noticed; 0: there is none, the key says it all.
    kept: a credential that cannot be referred to weakly; it stays alive with its client.
    temporary: the application does not keep the credential: the client does, and is nobody else's.
    sas: the AzureSasCredential of the application, whose `update` reaches its clients.

    Raises ConfigurationError for anything but a credential.
    """

    __slots__ = (
        "asynchronous",
        "credential",
        "kept",
        "key",
        "live",
        "loop",
        "loop_serial",
        "sas",
        "serial",
        "target",
        "temporary",
    )

    def __init__(
        self,
        credential: Any,
        target: str,
        *,
        asynchronous: bool = False,
        temporary: bool = False,
    ) -> None:
        self.target = target
        self.asynchronous = asynchronous
        self.kept: Any = None
        self.live: Any = None
        self.serial = 0
        self.loop = _running_loop() if asynchronous else None
        self.credential = _without_text(credential)
        self.sas = credential if hasattr(credential, "signature") else None
        secret = _secret_of(self.credential)
        kind = "key" if self.sas is None else "sas"
        who: Hashable = self._who() if secret is None else (kind, digest(secret))
        # A loop's clients are of no use to another one, also not to one at the same address.
        self.loop_serial = 0 if self.loop is None else serial_of(self.loop)
        self.key: tuple[Hashable, ...] = (who, target, self.loop_serial)
        self.temporary = temporary and bool(self.serial)

    def becomes_its_own(self) -> None:
        """Another object with the same signature has a client already, and may be updated some day."""
        self.key = (*self.key, serial_of(self.sas))

    def _who(self) -> Hashable:
        check_credential(self.credential)
        if is_async(self.credential) and not self.asynchronous:
            raise ConfigurationError(
                f"{type(self.credential).__name__} is an asynchronous credential; ask `aclient`, or use the "
                "synchronous class of the same name in azure.identity"
            )
        try:
            self.serial = serial_of(self.credential)
        except ConfigurationError:
            # The entry keeps it, so nothing else can have this address while the entry exists.
            self.kept = self.credential
            return ("kept", id(self.credential))
        return self.serial

    @property
    def can_be_shortened(self) -> bool:
        """Whether the object that was given always means this key: keys in objects are rotated in place."""
        return bool(self.serial) or self.kept is not None

    @property
    def owner(self) -> str:
        """Whose the client is, for statistics: a number, or the beginning of a keyed hash."""
        if self.serial:
            return f"credential {self.serial}"
        who: Any = self.key[0]
        return f"{who[0]} {str(who[1])[:8]}"

    def reference(self) -> Callable[[], Any] | None:
        """To the credential, where the client must not outlive it."""
        return weakref.ref(self.credential) if self.serial else None

    def for_client(self, manager: Any) -> Any:
        """What the SDK's client is given: a token credential on loan, or its own copy of a key."""
        if self.serial or self.kept is not None:
            return lend(manager, self.credential, asynchronous=self.asynchronous)
        # Applications rotate keys by `update` on theirs: that is another key here, and another client.
        if hasattr(self.credential, "named_key"):
            return type(self.credential)(*self.credential.named_key)
        if hasattr(self.credential, "signature"):
            if self.sas is None:  # it came as text, which nobody updates
                return self.credential
            self.live = live_sas(self.credential.signature, self.sas)
            return self.live
        return self.credential


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "no event loop runs in this thread; ask for an asynchronous client where it is used, in a coroutine"
        ) from None


def _without_text(credential: Any) -> Any:
    """A SAS that came as text, as an AzureSasCredential: clients then do not show it in their URL."""
    if not isinstance(credential, str):
        return credential
    if not credential:
        raise ConfigurationError("the key is empty")
    if "sig" in parse_qs(credential.lstrip("?")):
        with needed_for("clients"):
            from azure.core.credentials import AzureSasCredential

        return AzureSasCredential(credential.lstrip("?"))
    return credential


def _secret_of(credential: Any) -> str | None:
    """The text that a key credential stands for; None for token credentials."""
    if isinstance(credential, str):
        return credential
    if isinstance(credential, type):
        return None
    named = getattr(credential, "named_key", None)
    if named is not None:
        return f"{named.name}\0{named.key}"
    signature = getattr(credential, "signature", None)
    return signature if isinstance(signature, str) else None


def digest(secret: str) -> str:
    """A keyed hash of a secret, for this process and its children."""
    made = _DIGEST.copy()
    made.update(secret.encode("utf-8", "surrogatepass"))
    return made.hexdigest()


def checked_number(name: str, value: object) -> int:
    """A whole number, 1 or more, or ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{name}={value!r:.40} is not allowed; give a whole number, 1 or more"
        )
    return value


def checked_ttl(value: object, name: str = "idle_ttl") -> float | None:
    """Seconds, 0 or more; None stays None. Raises ConfigurationError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} is a {type(value).__name__}; give seconds, 0 or more")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise ConfigurationError(
            f"{name}={value!r:.40} is not allowed; give a finite number of seconds, 0 or more"
        )
    return seconds


def configured_ttl(given: float | None, variable: str) -> float:
    """Seconds: what was given, else what the environment variable says, else 1800.

    Raises ConfigurationError that names the variable, its value and what is allowed.
    """
    if given is not None:
        return given
    text = os.environ.get(variable) if variable else None
    if text is None:
        return DEFAULT_IDLE_TTL_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigurationError(
            f"{variable}={text!r:.40} is not allowed; give a finite number of seconds, more than 0, or unset "
            f"it for {DEFAULT_IDLE_TTL_S:g}"
        )
    return seconds

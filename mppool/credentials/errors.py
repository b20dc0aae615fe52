"""What the other processes are told when a token cannot be fetched: text without secrets, and a pause.

azure-core's exceptions hold their response and traceback and cannot be sent anywhere.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from mppool.credentials.credential import wants_sign_in
from mppool.redaction import HIDDEN, without_secrets
from mppool.tokens.cached_token import Failure, TokenUnavailable

DEFAULT_PAUSE_S = 5.0
"""After a failure that names no time (MSAL's default; errors of managed identity never name one)."""

SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 3600.0
_LONGEST_TEXT = 600

_SUSPICIOUS = re.compile(r"[A-Za-z0-9_\-.~+=%]{32,}")
_GUID = re.compile(r"\{?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}?[.,]?")
# MSAL's text for what App Service's endpoint answers; azure-identity throws the response away.
_STATUS_IN_TEXT = re.compile(r"Token request error: \(\w+\) (?:429|5\d\d),")
_MARKUP = re.compile(r"<[^>]{0,500}>")


class OnlyHere(Exception):
    """A reason for having no token that concerns this process alone: another one may try at once."""


def redacted(text: str) -> str:
    """The text without what could be a token or a secret: long runs without a break, but for GUIDs."""
    brief = without_secrets(_MARKUP.sub(" ", text[:20000]))
    hidden = _SUSPICIOUS.sub(lambda found: found[0] if _GUID.fullmatch(found[0]) else HIDDEN, brief)
    shown = " ".join(hidden.split())
    return shown if len(shown) <= _LONGEST_TEXT else shown[:_LONGEST_TEXT] + " ..."


def describe(error: Exception, said: Any = None) -> Failure:
    """What to tell the other processes of an error.

    said: the issuer's response, where the error does not have it.
    """
    text = f"{type(error).__name__}: {redacted(str(error))}"
    if isinstance(error, json.JSONDecodeError):
        text += " (the identity endpoint answered something other than JSON)"
    if isinstance(error, OnlyHere) or wants_sign_in(error):
        return Failure(text, 0.0)  # in another process somebody may have signed in
    if isinstance(error, TokenUnavailable):
        return Failure(redacted(str(error)), max(error.retry_in, SHORTEST_PAUSE_S))
    return Failure(text, *_pause_after(error, said))


def is_refusal(error: BaseException) -> bool:
    """Whether the issuer, or the person who was asked, said no: not a fault on the way there."""
    try:
        from azure.core.exceptions import ClientAuthenticationError
    except ModuleNotFoundError:
        return False
    return isinstance(error, ClientAuthenticationError) and error.__cause__ is None


def pause_after(error: BaseException) -> float:
    """Seconds to wait after this error: what the issuer said (Retry-After), else the default."""
    return _pause_after(error)[0]


def _pause_after(error: BaseException, said: Any = None) -> tuple[float, bool]:
    """And whether the issuer said it for everybody: it throttles (429), is out of order (5xx), names a time."""
    everybody = bool(_STATUS_IN_TEXT.search(str(error)))
    for response in (said, *_responses_of(error)):
        seconds = _said(response)
        if seconds is not None:
            return min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S), True
        everybody = everybody or _is_for_everybody(getattr(response, "status_code", None))
    return DEFAULT_PAUSE_S, everybody


def _responses_of(error: BaseException) -> Iterator[Any]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield getattr(cause, "response", None)
        cause = cause.__cause__ or cause.__context__


def _is_for_everybody(status: object) -> bool:
    return isinstance(status, int) and (status == 429 or status >= 500)


def _said(response: Any) -> float | None:
    headers = getattr(response, "headers", None)
    if headers is None:
        return None
    lower = {str(name).lower(): str(value) for name, value in dict(headers).items()}
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if lower.get(name, "").strip().isdecimal():
            return int(lower[name]) / 1000
    value = lower.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    moment = email.utils.parsedate_tz(value) if value else None
    return None if moment is None else max(0.0, email.utils.mktime_tz(moment) - time.time())


def raise_for_others(error: TokenUnavailable) -> NoReturn:
    """Raise, for a caller whose token another process failed to fetch, what an Azure client understands.

    A ClientAuthenticationError, which is not retried; or a CredentialUnavailableError, after which a
    ChainedTokenCredential goes on. TokenUnavailable is its cause.
    """
    try:
        from azure.core.exceptions import ClientAuthenticationError

        kind: type[ClientAuthenticationError] = ClientAuthenticationError
        if str(error).startswith("CredentialUnavailableError"):
            from azure.identity import CredentialUnavailableError as kind  # noqa: N813
    except ModuleNotFoundError:
        raise error from None  # a credential that needs none of Azure's packages
    again = f"; not to be tried again for {error.retry_in:.0f} s" if error.retry_in > 0 else ""
    raise kind(message=f"no token could be fetched: {error}{again}") from error

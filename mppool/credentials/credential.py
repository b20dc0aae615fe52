"""Asking credentials for tokens, whatever they are, and a credential for a token that is there already."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mppool.credentials.extra import needed_for
from mppool.credentials.identity import azure_class_of, home_account_of, is_interactive
from mppool.credentials.token_struct import UNKNOWN_LIFE_S, TokenInfo, checked_token, token_struct
from mppool.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo


_OVER_A_CACHE = frozenset(
    {
        "ManagedIdentityCredential",
        "ClientSecretCredential",
        "CertificateCredential",
        "ClientAssertionCredential",
        "WorkloadIdentityCredential",
        "AzurePipelinesCredential",
        "EnvironmentCredential",
    }
)
"""azure-identity's classes that answer from a cache, unless they are asked with claims. Not those that would then
ask a person."""


class RawToken:
    """A token as a credential gave it, checked. Instants are seconds since 1970; None: not said."""

    __slots__ = ("expires_on", "refresh_on", "token")

    def __init__(self, token: str, expires_on: float | None, refresh_on: float | None) -> None:
        self.token = token
        self.expires_on = expires_on
        self.refresh_on = refresh_on


class StaticToken:
    """A credential for a token that the application brings itself; its life is the application's business.

    token: the access token, without "Bearer".
    expires_on: seconds since 1970, or None where it is not known.

    Raises ConfigurationError, which never shows it, for anything but a token.
    """

    __slots__ = ("__weakref__", "_expires_on", "_token")

    def __init__(self, token: str, expires_on: float | None = None) -> None:
        checked_token(token)
        self._token = token
        self._expires_on = _checked_instant("expires_on", expires_on)

    @property
    def expires_on(self) -> float | None:
        """Seconds since 1970, or None where it is not known."""
        return self._expires_on

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """The token, whatever the scope: only the application knows what it is for."""
        with needed_for("tokens for Azure's clients"):
            from azure.core.credentials import AccessToken as Answer

        return Answer(self._token, self._said())

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        """The token, whatever the scope."""
        with needed_for("tokens for Azure's clients"):
            from azure.core.credentials import AccessTokenInfo as Answer

        return Answer(self._token, self._said())

    def raw(self) -> RawToken:
        """What is known, without Azure's packages."""
        return RawToken(self._token, self._expires_on, None)

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> StaticToken:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def _said(self) -> int:
        # azure-core wants a number: one in the near future has its policies ask again, and get the same.
        if self._expires_on is not None:
            return int(self._expires_on)
        return int(time.time() + UNKNOWN_LIFE_S)

    def __repr__(self) -> str:
        return f"StaticToken(<hidden>, expires_on={self._expires_on!r})"


def check_credential(credential: object) -> None:
    """Raises ConfigurationError for anything but a token credential."""
    if isinstance(credential, type):
        raise ConfigurationError(
            f"the credential is the class {credential.__name__} itself; give an instance: "
            f"{credential.__name__}(...)"
        )
    if isinstance(credential, (str, bytes)):
        raise ConfigurationError(
            "the credential is text; for a token that you bring use mppool.azure.StaticToken(token)"
        )
    if not callable(getattr(credential, "get_token", None)) and not callable(
        getattr(credential, "get_token_info", None)
    ):
        raise ConfigurationError(
            f"the credential is of type {type(credential).__name__}, which has no get_token; give a token "
            "credential of azure-identity, or mppool.azure.StaticToken(token)"
        )


def is_async(credential: object) -> bool:
    """Whether the credential's methods are coroutines (azure.identity.aio)."""
    method = getattr(credential, "get_token_info", None) or getattr(credential, "get_token", None)
    return inspect.iscoroutinefunction(inspect.unwrap(method)) if callable(method) else False


def get_token_info(
    credential: Any, scope: str, asker: Callable[..., RawToken] | None = None
) -> TokenInfo:
    """Ask the credential for a token, silently first where it may ask a person, and put it as drivers want it.

    asker: asks it, where it is asynchronous, with the arguments of `ask`.

    Raises what the credential raises, and ConfigurationError where that is not a credential, or its answer not a token.
    """
    if asker is None:
        raw = ask(credential, (scope,))
    else:
        raw = asker(
            credential, (scope,), claims="", tenant_id="", enable_cae=False, may_prompt=True
        )
    return TokenInfo(token_struct(raw.token), raw.expires_on, home_account_of(credential))


def ask(
    credential: Any,
    scopes: tuple[str, ...],
    *,
    claims: str = "",
    tenant_id: str = "",
    enable_cae: bool = False,
    may_prompt: bool = True,
) -> RawToken:
    """A token of a synchronous credential.

    may_prompt: False: raise what the credential raises rather than ask a person to sign in.
    """
    check_credential(credential)
    if isinstance(credential, StaticToken):
        return credential.raw()
    options = request_options(claims, tenant_id, enable_cae)
    try:
        return _ask_once(credential, scopes, options, may_prompt)
    except Exception as error:
        if not may_prompt or not wants_sign_in(error) or not hasattr(credential, "authenticate"):
            raise
    # Silently was not enough. The caller asked for a token, so its process may ask the person.
    credential.authenticate(scopes=list(scopes), **options)
    return _ask_once(credential, scopes, options, may_prompt)


def wants_sign_in(error: BaseException) -> bool:
    """Whether this is azure-identity's AuthenticationRequiredError."""
    return any(cls.__name__ == "AuthenticationRequiredError" for cls in type(error).__mro__)


def request_options(claims: str, tenant_id: str, enable_cae: bool) -> dict[str, Any]:
    """Only what was asked for: older and foreign credentials do not know all of it."""
    options: dict[str, Any] = {}
    if claims:
        options["claims"] = claims
    if tenant_id:
        options["tenant_id"] = tenant_id
    if enable_cae:
        options["enable_cae"] = True
    return options


def insisting(credential: object) -> str:
    """The claims with which azure-identity asks the issuer, instead of looking into its own cache. Else "".

    It is the challenge of CAE: a token that was not issued before now.
    """
    if azure_class_of(credential) not in _OVER_A_CACHE:
        return ""
    return json.dumps(
        {"access_token": {"nbf": {"essential": True, "value": str(int(time.time()))}}},
        separators=(",", ":"),
    )


def _ask_once(
    credential: Any, scopes: tuple[str, ...], options: dict[str, Any], may_prompt: bool
) -> RawToken:
    if not may_prompt and is_interactive(credential):
        answer = credential.get_token(*scopes, _allow_prompt=False, **options)
    elif callable(getattr(credential, "get_token_info", None)):
        # It keeps `refresh_on`, which `get_token` drops.
        answer = credential.get_token_info(*scopes, options=options)
    else:
        answer = credential.get_token(*scopes, **options)
    if inspect.iscoroutine(answer):
        answer.close()
        raise ConfigurationError(
            f"{type(credential).__name__} is an asynchronous credential; use manager.async_credential, or "
            "the synchronous class of the same name in azure.identity"
        )
    return checked_answer(answer, credential)


def checked_answer(answer: Any, credential: object) -> RawToken:
    """What a credential returned, if it is a token. Raises ConfigurationError, which never shows it."""
    who = azure_class_of(credential) or type(credential).__name__
    token = getattr(answer, "token", None)
    if token is None:
        raise ConfigurationError(f"{who} returned a {type(answer).__name__}, which has no token")
    try:
        checked_token(token)
        expires_on = _checked_instant("expires_on", getattr(answer, "expires_on", None))
        refresh_on = _checked_instant("refresh_on", getattr(answer, "refresh_on", None))
    except ConfigurationError as error:
        raise ConfigurationError(f"{who} returned no usable token: {error}") from None
    return RawToken(token, expires_on, refresh_on)


def _checked_instant(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(
            f"{name} is a {type(value).__name__}; it must be seconds since 1970 (a number), or None"
        )
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ConfigurationError(f"{name} is not a point in time")
    return seconds

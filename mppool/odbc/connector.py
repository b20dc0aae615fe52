"""Logging in: what is asked for each connection, where the driver looks for its token, and what a failure says."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mppool.odbc import connection_string as grammar
from mppool.odbc import driver_manager
from mppool.odbc.arguments import is_of_sql_server
from mppool.odbc.attributes import (
    ACCESS_TOKEN,
    NOT_BESIDE_A_TOKEN,
    AttributeSource,
    asked_for,
    check_token_structure,
    mark_of,
    text_of,
)
from mppool.odbc.errors import is_no_such_driver, message_of, refuses_login, scrubbed_with
from mppool.odbc.login import Login, LoginSource
from mppool.recipe import Opening
from mppool.secret import log_in

if TYPE_CHECKING:
    import pyodbc

_LONGEST_APPLICATION = 128
"""In characters, of what SQL Server keeps (`program_name` of sys.dm_exec_sessions)."""

_NEITHER = (("Trusted_Connection", "No"), ("Authentication", ""))


class Connector:
    """Opens ODBC connections.

    login: where connection strings come from.
    attrs_before: connection attributes, or what is asked for them.
    login_timeout: seconds that a login may take; None: as long as the driver likes.
    label_sessions: whether SQL Server is told the label of an opening as the name of the application.
    """

    def __init__(
        self,
        login: LoginSource,
        attrs_before: AttributeSource,
        autocommit: bool,
        login_timeout: float | None,
        label_sessions: bool,
    ) -> None:
        self._login = login
        self._attrs_before = attrs_before
        self._autocommit = autocommit
        self._login_timeout = login_timeout
        self._label_sessions = label_sessions

    def connect(self, opening: Opening) -> pyodbc.Connection | Exception:
        """Log in; where that is refused with what callables have said, ask them once more.

        Returns the driver's error without secrets: raising it here would show them in this frame.
        """
        attributes, opening.expires_on = asked_for(self._attrs_before)
        if opening.token is not None:
            attributes[ACCESS_TOKEN] = opening.token.token_struct
        has_token = ACCESS_TOKEN in attributes
        return log_in(
            opening,
            lambda: self._login.ask(beside_a_token=has_token),
            lambda login: self._attempt(login, attributes, opening),
            refuses_login,
        )

    def _attempt(
        self, login: Login, attributes: dict[int, Any], opening: Opening
    ) -> pyodbc.Connection | Exception:
        module = driver_manager.load()
        string = self._with_token(login, attributes, opening.label)
        try:
            connection: pyodbc.Connection = module.connect(
                string,
                autocommit=self._autocommit,
                timeout=self._seconds_to_log_in(opening),
                attrs_before=attributes or None,
            )
        except module.Error as error:
            return self._explained(_without_token(error, attributes), login, module)
        return connection

    def _seconds_to_log_in(self, opening: Opening) -> int:
        # For pyodbc 0 means: do not set any.
        allowed = [
            seconds for seconds in (self._login_timeout, opening.timeout) if seconds is not None
        ]
        return max(1, math.ceil(min(allowed))) if allowed else 0

    def _with_token(self, login: Login, attributes: dict[int, Any], label: str) -> str:
        """Put the token where the driver looks for it; the connection string that goes with it."""
        application = application_of(login, label) if self._label_sessions else []
        if ACCESS_TOKEN not in attributes:
            return grammar.with_more(login.text, application)
        structure = attributes[ACCESS_TOKEN]
        check_token_structure(structure)
        # A copy that only this call knows: what others hold they may change while the driver reads it.
        attributes[ACCESS_TOKEN] = structure = bytes(bytearray(structure))
        pieces = [piece for piece in login.pieces if piece[0].lower() not in NOT_BESIDE_A_TOKEN]
        if any(keyword.lower() in ("dsn", "filedsn") for keyword, _ in pieces):
            # What the data source says of them counts where the string says nothing.
            pieces.extend(_NEITHER)
        if driver_manager.keeps_closed_sessions():
            # It takes all sessions of one connection string for the same (hazard of its own pooling).
            pieces = [piece for piece in pieces if piece[0].lower() != "app"]
            application = [("APP", mark_of(structure))]
        return grammar.joined([*pieces, *application])

    def _explained(self, error: Exception, login: Login, module: ModuleType) -> Exception:
        """What to raise instead of the driver's error: without secrets, perhaps with a hint."""
        scrubbed = scrubbed_with(login.scrubber.scrub, error)
        if is_no_such_driver(error):
            installed = ", ".join(sorted(module.drivers())) or "none"
            return type(error)(
                *scrubbed.args[:-1],
                f"{message_of(scrubbed)}: the driver manager cannot load what "
                f"{grammar.shown(login.pieces)!r} names. Installed drivers (sections of odbcinst.ini): "
                f"{installed}",
            )
        return scrubbed


def application_of(login: Login, label: str) -> list[tuple[str, str]]:
    """The label as Microsoft's drivers want it, where the connection string names no application."""
    named = {keyword.lower(): value for keyword, value in reversed(login.pieces)}
    if not label or "app" in named or not is_of_sql_server(named):
        return []
    return [("APP", label[-_LONGEST_APPLICATION:])]


def _without_token(error: Exception, attributes: dict[int, Any]) -> Exception:
    """The driver's error, should it repeat the token."""
    structure = attributes.get(ACCESS_TOKEN)
    if structure is None:
        return error
    token = text_of(structure)
    return type(error)(
        *(
            argument.replace(token, grammar.HIDDEN) if isinstance(argument, str) else argument
            for argument in error.args
        )
    )

"""What pyodbc's errors say: an SQLSTATE, and a text."""

from __future__ import annotations

from collections.abc import Callable

from mppool.dbapi.sessions import REFUSALS


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of pyodbc's error; empty where it has none (an error of pyodbc itself)."""
    first = error.args[0] if error.args else ""
    return first if isinstance(first, str) and len(first) == 5 and len(error.args) > 1 else ""


def message_of(error: BaseException) -> str:
    """The text of pyodbc's error, which begins with the SQLSTATE."""
    return str(error.args[-1]).strip() if error.args else str(error)


def has_expired(state: str) -> bool:
    """Whether an SQLSTATE says that the driver has waited for as long as it was told to."""
    return state in ("HYT00", "HYT01")


def is_no_such_driver(error: BaseException) -> bool:
    """Whether the driver manager found no driver, or no data source, of the given name."""
    state = sqlstate(error)
    # unixODBC gives a library that cannot be loaded the general state of warnings.
    return state in ("IM002", "IM003") or (state == "01000" and "open lib" in message_of(error))


def refuses_login(error: BaseException) -> bool:
    """Whether user or password was not accepted: by its SQLSTATE, or by its text where a driver has another state."""
    return sqlstate(error) in ("28000", "28P01") or any(
        one in message_of(error) for one in REFUSALS
    )


def scrubbed_with(scrub: Callable[[str], str], error: Exception) -> Exception:
    """The same error without secrets: a new object, without the old one's history."""
    arguments = [scrub(one) if isinstance(one, str) else one for one in error.args]
    return type(error)(*arguments)

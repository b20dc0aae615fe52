"""What of a statement stays in a session. Statements are looked at as text: what a procedure does is not seen."""

from __future__ import annotations

import re

ENDS_TRANSACTION_OF_SQL_SERVER = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"
"""Ends what a statement has begun under autocommit, of which drivers know nothing."""

_COMMENTS = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
# What stays in a session although Microsoft's drivers reset it.
_BEYOND_A_RESET = re.compile(
    r"\bset\s+transaction\s+isolation\b|\bsp_setapprole\b|\bexecute\s+as\b", re.IGNORECASE
)
# What stays in a session that nobody resets: at the beginning of a statement, or a function anywhere.
_STAYS = re.compile(
    r"(?:^|;)\s*(?:set(?!\s+local\b)|use|pragma|attach|detach|listen|prepare|declare|load|handler|"
    r"alter\s+session|lock\s+tables|create\s+(?:(?:or\s+replace|global|local)\s+)*temp(?:orary)?|"
    r"create\s+table\s+\[?\#|select\b[^;]*\binto\s+(?:temp(?:orary)?\b|\[?\#)|"
    r"begin\s+(?:immediate|exclusive))|"
    r"\b(?:set_config|pg_(?:try_)?advisory_lock\w*|get_lock)\s*\(|\bsp_setapprole\b|\bexecute\s+as\b",
    re.IGNORECASE,
)


def leaves_behind(statement: object, *, resets: bool) -> bool:
    """Whether what the statement does stays for the next user of the session.

    resets: on release the session is reset, as Microsoft's ODBC drivers do it.
    """
    if not isinstance(statement, str):
        return False
    pattern = _BEYOND_A_RESET if resets else _STAYS
    return bool(pattern.search(_COMMENTS.sub(" ", statement)))

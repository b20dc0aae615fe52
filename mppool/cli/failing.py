"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations

OK, FAULT, USAGE, NOT_FOUND, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses; the docstring of mppool.cli says what they mean."""


class CommandFailed(Exception):
    """The command cannot be carried out; the message is for people, `status` for scripts."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status

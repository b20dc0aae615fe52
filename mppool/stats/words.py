"""Numbers with their words, for texts that people read."""

from __future__ import annotations


def counted(number: int, one: str, more: str) -> str:
    """1 pool, 2 pools."""
    return f"{number} {one if number == 1 else more}"


def processes(number: int) -> str:
    """1 process, 2 processes."""
    return counted(number, "process", "processes")

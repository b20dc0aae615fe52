"""Types of options, for argparse, which reports a ValueError to the user."""

from __future__ import annotations

import argparse
import math


def seconds(text: str) -> float:
    """A type for argparse: a finite number of seconds, 0 or more."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds that is 0 or more")
    return value


def positive_seconds(text: str) -> float:
    """A type for argparse: a finite number of seconds above 0."""
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("give more than 0 seconds")
    return value


def host_and_port(text: str) -> tuple[str, int]:
    """A type for argparse: an address to listen at, such as 127.0.0.1:9464 or [::1]:9464."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT, such as 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)


def number(text: str) -> int:
    """A type for argparse: a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def positive_number(text: str) -> int:
    """A type for argparse: a whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value

"""The version that the server tells its clients; importlib.metadata would cost every start 10 ms."""

from __future__ import annotations

VERSION = "0.1.0"

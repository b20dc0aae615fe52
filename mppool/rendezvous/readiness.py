"""What a new server says to the process that has started it, on a pipe: one byte, and perhaps a text."""

from __future__ import annotations

from mppool.errors import ServerUnavailable

READY = b"R"
"""The server listens."""
ANOTHER = b"A"
"""Another server is alive and keeps the lock."""
FAILED = b"F"
"""The start failed; the log says why."""
REFUSED = b"C"
"""No server can work here; the text of the ConfigurationError follows."""
LONGEST_ANSWER = 4096


class NotReadyYet(ServerUnavailable):
    """A server is being started, or is too busy to listen: more time may help."""

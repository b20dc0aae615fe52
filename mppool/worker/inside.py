"""Whether a thread is in a hook: what such a hook does with a pool happens in its own thread.

Else a hook that uses the pool, and knows by its thread that it is inside itself, would never end.
"""

from __future__ import annotations

import threading


class Inside(threading.local):
    """checker: in a check beside its caller. hooks: in so many others."""

    checker = False
    hooks = 0

    @property
    def a_hook(self) -> bool:
        """Whether this thread is in any of them."""
        return self.checker or self.hooks > 0


inside = Inside()

"""Whether nobody keeps a credential: `blobs.client(Credential(), account)`, the line of every tutorial.

The pool refers to credentials weakly, so such a one would be gone in the next moment, and its client with it. Then
the client's transport keeps it.
"""

from __future__ import annotations

import sys
from typing import Any


class _Probe:
    """Counts as the methods of a pool do."""

    def client(self, credential: Any, target: str) -> int:
        """References to an argument, in the first frame."""
        return sys.getrefcount(credential)


def _measured() -> int:
    """References to an argument that nobody keeps; 0 where this Python does not count those of variables."""
    probe, kept = _Probe(), _Probe()
    temporary = probe.client(_Probe(), "")
    return temporary if temporary < probe.client(kept, "") else 0


UNKEPT = _measured()
"""An argument with no more references, in the first frame that gets it, is kept by nobody."""

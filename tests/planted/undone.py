"""Faults that were found between the real pieces, and mended: here the mending is undone again.

The simulation finds all but the first, which tests with real processes find.
"""

from __future__ import annotations

from tests.planted.bugs import Bug

_SIMULATION = ("tests/simulation/test_undone.py",)

UNDONE = [
    Bug(
        "undone-slot-after-shutdown",
        "link/session.py",
        "        self.unheard = not (detached or (self.farewell and heard and said_all))\n",
        "        self.unheard = not (detached or self.farewell)\n",
        "what was given back while the server left stays taken under the next one",
        ("tests/processes/test_unheard.py",),
    ),
    Bug(
        "undone-one-member",
        "link/witness.py",
        '            number = chance << 1 | hasattr(os, "memfd_create")\n',
        "            number = 0\n",
        "two members of one process free each other's slots",
        _SIMULATION,
    ),
    Bug(
        "undone-resize-holds",
        "core/declarations.py",
        "        if value == self.declared:\n            return False\n",
        "        if value == self.value:\n            return False\n",
        "a worker that is born into a resized pool undoes the resize",
        _SIMULATION,
    ),
    Bug(
        "undone-other-namespace",
        "rendezvous/world.py",
        "    if below or above:\n",
        "    if False:\n",
        "a server of another pid namespace voids the journal of living processes",
        _SIMULATION,
    ),
]

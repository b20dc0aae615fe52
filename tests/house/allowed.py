"""What is not as it should be yet. These lists only ever get shorter; the aim is that they are empty."""

from __future__ import annotations

IN_CIRCLES: tuple[str, ...] = ()
"""Modules that reach themselves over their imports."""

BY_STRING: tuple[str, ...] = ()
"""Modules that import one of ours by a name in a string."""

LONG_FILES: tuple[str, ...] = ()
"""Files of more than 450 lines."""

LONG_FUNCTIONS: tuple[str, ...] = ()
"""Functions of more than 60 lines."""

WRITERS_OF_A_STATE = {"mppool.worker.inventory": 7}
"""Where in the worker the `state` of a resource is assigned, and how often. The aim: in one file."""

WRITERS_OF_THE_TABLE = {"mppool.worker.inventory": 2, "mppool.worker.principals": 2}
"""Where in the worker an entry of a `table` is set or removed, and how often. The aim: in one file."""

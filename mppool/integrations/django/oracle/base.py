"""Django looks here for the wrapper of the backend."""

from __future__ import annotations

from django.db.backends.oracle import base

from mppool.integrations.django.pooling import SharedPoolMixin


class DatabaseWrapper(SharedPoolMixin, base.DatabaseWrapper):  # type: ignore[misc]
    """Django's own, with its connections from the pool."""

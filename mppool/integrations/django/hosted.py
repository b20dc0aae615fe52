"""Django over hosts: `OPTIONS["pool"] = {"placement": "host"}`.

In the host a wrapper of the backend connects and prepares the connection, as it does everywhere. The worker's wrapper drives that
connection, and leaves out what was done there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import tee
from typing import TYPE_CHECKING, Any

from mppool.hosting.lease import HostedLease
from mppool.integrations.django.recipe import DjangoRecipe

if TYPE_CHECKING:
    from mppool.recipe import Opening

_NEEDED = ("USE_TZ", "TIME_ZONE")
"""What backends ask the settings for."""


def is_hosted(lease: Any) -> bool:
    """Whether its connection is in a host. With MPPOOL_ALONE=1 it is not."""
    return isinstance(lease, HostedLease)


class HostedDjangoRecipe(DjangoRecipe):
    """Opens in a host what a wrapper of the backend has after `connect`."""

    def __reduce__(self) -> tuple[Any, ...]:
        from django.conf import settings

        template = self._template
        own = {name: getattr(settings, name) for name in _NEEDED}
        return _made_in_host, (type(template), template.settings_dict, template.alias, own)

    def connect(self, opening: Opening) -> Any:
        """Connect and prepare, with a wrapper that stays with the connection."""
        template = self._template
        wrapper = template.as_template()
        wrapper.connect()
        wrapper.inc_thread_sharing()  # one thread after the other
        connection = wrapper.connection
        wrapper.serve_workers()
        return connection


def _made_in_host(
    kind: Any, settings: dict[str, Any], alias: str, own: dict[str, Any]
) -> HostedDjangoRecipe:
    from django.conf import settings as configured

    # An application without a settings module has said them by itself, and the host has not run that.
    if not configured.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        configured.configure(**own)
    return HostedDjangoRecipe(kind(settings, alias).as_template())


class ConvertingCursor:
    """A cursor of SQLite in a host, with the placeholders that Django uses. convert: Django's own SQLiteCursorWrapper."""

    def __init__(self, cursor: Any, convert: Any) -> None:
        self._cursor = cursor
        self._convert = convert

    def execute(self, query: str, params: Any = None) -> ConvertingCursor:
        """As SQLiteCursorWrapper does."""
        if params is None:
            self._cursor.execute(query)
            return self
        self._cursor.execute(
            self._converted(query, params),
            dict(params) if isinstance(params, Mapping) else tuple(params),
        )
        return self

    def executemany(self, query: str, param_list: Any) -> ConvertingCursor:
        """As SQLiteCursorWrapper does."""
        looked_at, param_list = tee(iter(param_list))
        self._cursor.executemany(self._converted(query, next(looked_at, None)), param_list)
        return self

    def _converted(self, query: str, params: Any) -> Any:
        names = list(params) if isinstance(params, Mapping) else None
        return self._convert.convert_query(self, query, param_names=names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

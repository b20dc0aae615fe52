"""The state of books, of a model worker, of a whole world, as a value that can be compared and hashed."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any

import msgspec

_PLAIN = (int, str, bytes, float, bool, type(None))

# Statistics, what is shared with others, and what only ever grows.
_SKIPPED = {
    "counters",
    "earlier",
    "born",
    "_counted_earlier",
    "jitter",
    "_jitter",
    "_labels",
    "rules",
    "options",
    "_serial",
}
# What is derived from the rest, kept ready, and cleaned up late.
_SKIPPED |= {
    "serial",
    "_poorest",
    "_richest",
    "_expected",
    "_levels",
    "_levels_of_keys",
    "_heads",
}
_SKIPPED |= {
    "_table",
    "_timely",
    "_timely_wanted",
    "_wanted",
    "_takers_of_timely",
    "_open_in_order",
}
_SKIPPED |= {"_of_process", "_of_key", "_by_ticket", "by_ticket", "_groups"}
_SKIPPED |= {"_ends", "_retries", "_states", "_shut", "_kept_out", "_waiting_for", "noted"}
_SKIPPED |= {"deadline", "_deadlines", "_touched", "_known_in", "_anywhere", "_owner"}
_SKIPPED |= {"set_at", "declared_at", "closed_at", "_said", "_said_until", "_newest"}
# Derived from the slots (`check_tables` compares them with a recount).
_SKIPPED |= {
    "by_key",
    "by_process_and_key",
    "_by_state",
    "_open_by_key",
    "_closing_of",
    "_promised_to",
}
_SKIPPED |= {"_closing_by_key"}
# Parts that a part only reads: their owner shows them.
_SKIPPED |= {"_slots", "_waiting", "_capacity", "_breakers", "_openings", "_generations"}
_SKIPPED |= {"_declarations", "_attached", "_outbox", "_numbers", "_shared", "_born", "_holders"}
_SKIPPED |= {"_granted", "_waiters", "_awaited", "awaited", "pool", "_pool"}
# Parts without a state of their own, and aliases of what others own.
_SKIPPED |= {"ledger", "returns", "refusals", "control", "machine", "service", "total"}
_ALIASES = {"Capacity": {"slots", "breakers", "budget"}, "PoolBooks": {"budget"}}

_attributes: dict[type, tuple[str, ...]] = {}


def fingerprint(value: Any) -> Any:
    """Equal for equal states. Order counts, where the thing has one."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (tuple, list, deque):
        return tuple([fingerprint(item) for item in value])
    if kind in (dict, OrderedDict, Counter):
        return tuple([(fingerprint(k), fingerprint(v)) for k, v in value.items()])
    if kind in (set, frozenset):
        return frozenset([fingerprint(item) for item in value])
    if callable(value):
        return None
    return (kind.__name__, *[fingerprint(getattr(value, name)) for name in _names(value)])


def _names(value: Any) -> tuple[str, ...]:
    names = _attributes.get(type(value))
    if names is None:
        if isinstance(value, msgspec.Struct):
            names = value.__struct_fields__
        else:
            slots = getattr(type(value), "__slots__", None)
            skipped = _SKIPPED | _ALIASES.get(type(value).__name__, set())
            names = tuple(n for n in (slots or vars(value)) if n not in skipped)
        _attributes[type(value)] = names
    return names

"""Which lease has a resource. Leases are known to nobody but those who hold them, so they are searched for."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from mppool.errors import LeaseReleased
from mppool.worker.lease import Lease

if TYPE_CHECKING:
    from mppool.worker.local_pool import LocalPool


def lease_of(local: LocalPool, resource: Any) -> Lease[Any]:
    """See Pool.lease_of."""
    for entry in local.entries():
        if entry.resource is resource and resource is not None:
            for held in gc.get_referrers(entry):
                if type(held) is list and len(held) == 1 and held[0] is entry:
                    for lease in gc.get_referrers(held):
                        if issubclass(type(lease), Lease) and lease._held is held:
                            return lease  # type: ignore[no-any-return]
    raise LeaseReleased(
        f"pool {local.name!r}: this process has no lease of that resource: it was given back, or is another pool's"
    )

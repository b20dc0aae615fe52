"""ProxyPatternPool's interface (as of 11.6) over mppool's core.

    Proxy --> Pool --get--> checkout of an InProcessManager --> Box --> the object that `fun` made
                   <-ret---- release

settings.py    parameters, and what they are called in the core
register.py    which objects there are, and who has them
box.py         what the core pools: an object that the core need not know
recipe.py      how a box is made, checked and closed: `fun`, `health` and the other hooks
pool.py        Pool
housekeeper.py the pool's thread, where there is something to do for it
report.py      what `Pool.stats()` says
proxy.py       Proxy and its scopes
forking.py     what a forked child must neither use nor close
"""

from mppool.compat.proxypatternpool.errors import (
    PoolException,
    PPPException,
    ProxyException,
    TimeOut,
)
from mppool.compat.proxypatternpool.pool import Pool
from mppool.compat.proxypatternpool.proxy import Proxy
from mppool.compat.proxypatternpool.recipe import log

__all__ = ["PPPException", "Pool", "PoolException", "Proxy", "ProxyException", "TimeOut", "log"]

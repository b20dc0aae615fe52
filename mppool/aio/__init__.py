"""Pools of resources that belong to an event loop: AsyncPool, over the same books as Pool.

A resource is used, checked and closed in the loop that opened it. So each loop of a process has its own keys (see
homes.py): for the books its resources are as little exchangeable with those of another loop as with those of another
identity, and the cap is the same for all.

recipe.py     AsyncRecipe: what the user writes, with coroutines
homes.py      the event loops of this process that use a pool, and their ends
bridge.py     the recipe as the rest of the library knows it: its hooks run in the owning loop
pool.py       AsyncPool: the public face
lease.py      what `pool.checkout()` gives
lender.py     how a lease gets its resource, and gives it back
hooks.py      hooks that a task awaits itself: check, on_checkout, reset
watch.py      ends hooks that take too long
"""

"""The worker's side: what one process holds of a manager, and how its threads get it.

checkout --> shelf --------------------------------------------> lease      (warm: asks nobody)
    |                                                              |
    +--> waiter --> call --> server --> Grant --> recipe.open ----+         (cold; opened in another thread)
             ^                  |                                  |
             |               Queued                                v
             |                  |                               release
             +--- errand <------+                                  |
                    |                                              v
                    +---- Reclaim, Keep, Close -------> shelf <----+

For users
  pool.py          Pool: the public face; checkout, release, control
  aio.py           checkout for asyncio
  awaited.py       what `acheckout` returns, here and with hosts
  lease.py         Lease: the right to use one resource until it is given back

A pool in this process
  local_pool.py    what this process has of one pool, and what a checkout and a release do with a resource
  own_pool.py      what the parts below know of the pool that they belong to
  idle.py          idle resources, waiting threads, and contention (rule 6)
  shelves.py       where idle resources lie, and how they are taken
  line.py          the threads that wait for resources of this pool
  demand.py        when waiting threads ask the books, and when they hope for each other; pure
  checkout.py      a checkout that found nothing on the shelf: wait, and ask the books
  task_checkout.py the same of a task; tasks.py: what a loop does for its waiting tasks; deadlines.py, one_timer.py: their timer
  opening.py       what was granted is opened, in the thread that asked or beside it
  checking.py      checks, which may hang
  ending.py        the end of a resource: closing it, retiring what is too old
  due.py           when a resource that lies idle has to be looked after
  hooks.py         the recipe's hooks, all called here
  lanes.py         for which lanes resources are lent, and who is told
  budget.py        Budget: one cap over several pools, for users
  inside.py        whether a thread is inside a hook of a recipe

For whom a checkout is
  principals.py    which resources it may get
  principal.py     for whom one checkout is, and where its token comes from (mppool.credentials, mppool.tokens)

A manager in this process
  member.py        composes the parts; forks, and leaves
  context.py       what the pools share: inventory, link, executors, timers, tokens
  inventory.py     what this process holds, and the only writer of it; all that a forked child must not touch
  dispatch.py      does what the books decide
  report.py        the figures of this process, for the statistics

In the background, and in emergencies
  housekeeping.py  what has to be done when time has passed: recycling, checks, overdue leases
  audit.py         finds what nobody holds any more because a thread was interrupted
  frames.py        tracebacks keep no resource alive
"""

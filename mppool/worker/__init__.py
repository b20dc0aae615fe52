"""The worker's side: what one process holds of a manager, and how it is handed to its threads.

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
  lease.py         Lease: the right to use one resource until it is given back

A pool in this process
  face.py          what this process has of one pool, and what a checkout and a release do with a resource
  shelf.py         where idle resources lie: how they are taken, put back, and brought back to the books
  ending.py        the end of a resource: closing it, killing its lease, retiring what is too old
  waiter.py        a thread that waits, and the one answer that it gets
  line.py          the threads that wait for resources of this pool
  demand.py        when waiting threads ask the books, and when they hope for each other; pure
  cold.py          a checkout that found nothing on the shelf: wait, and ask the books
  opening.py       what was granted is opened, in the thread that asked or beside it
  inside.py        whether a thread is inside a hook of a recipe

For whom a checkout is
  principals.py    which resources it may get
  principal.py     for whom one checkout is, and where its token comes from (mppool.credentials, mppool.tokens)

A manager in this process
  member.py        what all threads share of one manager: tells the books what happens
  deciding.py      does what the books decide
  inventory.py     what this process holds, and the only writer of it; all that a forked child must not touch
  report.py        the figures of this process, for the statistics

In the background, and in emergencies
  housekeeping.py  what has to be done when time has passed: recycling, checks, overdue leases
  audit.py         finds what nobody holds any more because a thread was interrupted
"""

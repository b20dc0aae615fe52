"""The worker's side: what one process holds of a manager, and how it is handed to its threads.

checkout --> shelf --------------------------------------------> lease      (warm: asks nobody)
    |                                                              |
    +--> waiter --> call --> server --> Grant --> recipe.open ----+         (cold)
             ^                  |                                  |
             |               Queued                                v
             |                  |                               release
             +--- errand <------+                                  |
                    |                                              v
                    +---- Reclaim, Keep, Close -------> shelf <----+

pool.py      Pool: the public face; checkout, release, control
face.py      what this process has of one pool: shelves, local waiters, the contended flag
holdings.py  everything that a forked child must not touch: table of resources, session, sockets
member.py    this process as a member of a manager: carries out decisions, tells events
link.py      the way to the books: a server (ServerLink) or this process itself (LocalLink)
errands.py   the one background thread: reads errands, looks after timers
chores.py    hooks that may take long, away from the errand thread
fork.py      what happens in a child
"""

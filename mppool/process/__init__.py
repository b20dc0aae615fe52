"""What any part of a process needs, and that knows no pool.

fork.py        what happens in a forked child; the mark that tells a child from its parent
locks.py       locks that are made when they are first used, and how an interrupted thread frees its own
executor.py    hooks that may take long run here, away from the background thread
background.py  the one background thread: started, woken, put to sleep
alertness.py   whether to wait awake for what comes next
wakeup.py      wakes a thread that sleeps in poll()
greenlets.py   gevent is supported, eventlet is not
"""

"""How a process and the server of its manager find each other. Both sides and the command line import this.

paths.py        where everything lies: one directory per user, one sub-directory per manager
locator.py      where the processes of a manager meet, and how a process gets there
alone.py        whether this process pools for itself alone
launch.py       finds the server, or starts one
shielded.py     the start happens in a thread of its own, where no signal strikes
interpreter.py  which interpreter becomes the server
readiness.py    what a new server says to the process that has started it
claim.py        the server's own files: alive lock, socket, address file; put back when they vanish
liveness.py     what proves that a process is dead; the end of a connection does not
world.py        boot and pid namespace, and a sign of life that is seen from other namespaces
"""

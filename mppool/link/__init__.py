"""The way from a process to the books of a manager.

protocol.py     what a link does for the process above it
server_link.py  ServerLink: to a server
connection.py   connections for calls: one exchange at a time, with a deadline
channel.py      the connection on which the server speaks unasked: errands come, events go
errands.py      the one background thread: reads errands, looks after timers, attaches again
in_process.py   LocalLink: the books are in this process
witness.py      shows to the server that this member is there
troubles.py     what the system refuses leaves as a PoolError
"""

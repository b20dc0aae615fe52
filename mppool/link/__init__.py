"""The way from a process to the books of a manager.

protocol.py     what a link does for the process above it, and what it needs of that process
server_link.py  ServerLink: to the books of a server
session.py      the attachment to a server: made, lost, made again
errands.py      what the background thread does: reads errands, attaches again
channel.py      the connection on which the server speaks unasked: errands come, events go
connections.py  how connections are made, introduced, taken and given back
connection.py   one connection for calls: one exchange at a time, with a deadline
in_process.py   LocalLink: the books are in this process
witness.py      shows to the server that this member is there
troubles.py     what the system refuses leaves as a PoolError

A file imports only files below it in this order:
server_link > errands > session > channel, connections > connection, witness, protocol, troubles.
"""

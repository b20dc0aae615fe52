"""What travels between a worker and a host.

To the host: a length, the number of the request (8 bytes), and a msgpack array `[lease, op, freed, ...]`.
Back: a length, the number of the request that it answers, a kind (9 bytes in all), and what the kind says. Several frames
may answer one request: `TOKEN_WANTED` asks back, `MORE` is followed by further rows.

Both go through pipes (pipes.py) where they are small. Of what is not, the head alone does, with BIG in its length: what
follows is on the socket.

An answer that does not carry the number of the request is never read as its answer: the stream is closed.
"""

from __future__ import annotations

import struct

from mppool.hosting.pipes import SMALLEST_PIPE

PROTOCOL = 4

# --- what a worker asks for ---
HELLO = 0  # protocol, pid, birth, member, linger, whether it takes pipes
CHECKOUT = 1  # timeout, identity, whether there is a token to be had, label, who asks ("": not noted), lane
RELEASE = 2  # how; not answered
CALL = 3  # handle, name, args, kwargs
RUN = 4  # handle of the cursor, whether of the connection, name, args, kwargs
FETCH = 5  # handle, how many (None: all)
GET = 6  # handle, name
SET = 7  # handle, name, value
CANCEL = 8  # session, lease
TOKEN = 9  # the token that was wanted, or an error; not answered
INVALIDATE = 10  # whether it was renewed
LEAVE = 11  # the host leaves where no other process uses it
ATTACH = 12  # the host becomes a member of the manager, which it is at the first checkout else
EXECUTE = 13  # handle of the cursor, whether of the connection, statement, parameters: a tuple, a dictionary, or None

Noted = tuple[str, str, str | None]
"""With a checkout: label and who asks, for the statistics, and the lane."""

# --- how a lease ends ---
GIVEN_BACK, DISCARDED, SUSPECT = 0, 1, 2

# --- what a host answers ---
VALUE = 0
ERROR = 1
MORE = 2
TOKEN_WANTED = 3
IS_CALLABLE = 4
STATE = 5  # as VALUE, of a cursor, in marshal

REQUEST = struct.Struct("<II")
"""How many bytes follow, and the number of the request."""
ANSWER = struct.Struct("<IIB")
"""How many bytes follow the first four, the number of the request, and the kind."""
REST_OF_ANSWER = ANSWER.size - 4
BIG = 1 << 31
SMALL = SMALLEST_PIPE - ANSWER.size
"""Longer ones are big."""
READ_BYTES = 960
"""So much is read at once; what is longer is read into a buffer of its length. More would have to be allocated for each."""

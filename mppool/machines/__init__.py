"""One cap over many machines: the server of each leases its share of every pool's cap from Redis.

    books (core/) -- what each pool has and wants --> Machine --> one call --> Redis: script.py
                  <-- how much is this machine's --- (pure)  <-- one reply --   grants, by its own clock

- settings.py  the two options of a PoolManager: where Redis is, and what to do without it
- address.py   which Redis a URL means: one, the primary that sentinels know, a cluster
- timing.py    the deadlines of a lease, and the ratio of clocks that they tolerate
- needs.py     what a machine says, and what it is told
- machine.py   what a machine makes of a reply, of an error and of the time: pure
- script.py    what Redis computes, in Lua
- calling.py   a thread that calls, for nothing may block the server
- clients.py   the one file that knows the client of Redis

What holds: the shares of all machines together never exceed the cap. A machine lowers its share by itself and says so
in its next call; only the script raises one, and only out of what no machine may still be using.
"""

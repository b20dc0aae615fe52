"""Hosts: resources that are opened in a process of their own, and driven by all workers (`placement="host"`).

A worker                                   A host: an ordinary member of the manager
  HostedPool.checkout                        its pool: bounds, checks, resets, identities, as everywhere
    -> Streams: an idle stream, or a new one   ^
    -> Stream ==== one socket, one lease ====> Session (one thread): checks out, calls, releases
         ^                                     |
         Hold: one lease                       Handles: what the lease has been given, by number
         proxies (proxies.py, dbapi.py)        rows.py: rows leave in blocks

The server is not in the way of the data: it keeps the books of the host, and knows nothing of streams.

Both sides
  frames.py     what travels, and how it is framed; request numbers
  pipes.py      what is small goes through pipes
  values.py     how values travel: to the host without pickle
  travel.py     how a recipe gets to a host, and why one cannot
  launch.py     a host is found, or started
  keeping.py    a released lease stays with its worker while nobody waits

The worker
  pool.py       HostedPool
  lease.py      its leases
  streams.py    the connections of this process to hosts, and one call on one of them; stream_table.py has them all
  answers.py    what an answer says that is no value
  aio.py        checkouts for asyncio
  proxies.py    stands for any object in a host
  dbapi.py      stands for PEP 249 connections and cursors
  tending.py    a host of a pool with `min_size` that has ended is started again
  lost.py       what is raised where a connection is lost
  shapes.py     rows by index and by name

The host
  __main__.py   the process
  host.py       accepts streams, watches their processes, and leaves when nobody is there
  session.py    serves one stream
  requests.py   its requests and answers
  lending.py    the lease of a stream
  asked.py      what is asked of a resource, and how the answer leaves
  rows.py       rows leave in blocks
  columns.py    rows that marshal does not know
"""

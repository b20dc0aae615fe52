"""The server: one detached process that owns all slots of a manager. Nothing long happens in it.

    process (launch.py)                          server process (__main__.py)
      connect, or lock + start + one byte  ----->  alive lock, journal, listen, address file
                                                     |
      Hello, Attach, Checkout, Returned ...          v
      ------ socket ------> connection.py ----> loop.py ----> dispatch.py ----> core/books.py
                            frames              one thread,   who may say       decides,
                                                one epoll     what              does no I/O
                                                     ^              |
      <----- socket ------ connection.py <-----------|--------------+
      Grant, Queued, Reclaim ...                     |              |
                                                     |        journal.py: Record, Erase, RecordPool,
                            a pidfd     -------------+        written before the Grant is sent
                            of each process: Died

Actors, and the files that speak for them:

- loop.py         the only thread: reads, writes, keeps deadlines
- removals.py     inotify: files that are removed are put back at once
- poller.py       epoll: what is ready, and who is concerned
- door.py         accepts; who has not introduced himself is a stranger
- connection.py   frames of one peer, half read and half sent
- handshake.py    who may come in
- reception.py    who may talk, under which session, and who is attached
- residents.py    the living processes that the server knows
- dispatch.py     routes messages to the books and decisions to their processes
- debts.py        what could not be written down yet, and who has not been heard yet
- journal.py      what the next server must know, in place on disk
- members.py      one small file per attached process, for the day the journal is torn
- libc.py         what Python does not offer
- collecting.py   asks processes for their reports, for whoever wants statistics
- logfile.py      its log, of bounded size; put back when it vanishes

How the server ends:

    when                                     what then
    nobody connected, nothing held, linger   Goodbye, journal emptied, exit 0
    Leave or SIGTERM                         Goodbye; the journal stays while living processes hold slots
    another server took its files' place     Goodbye, journal left alone, exit 0
    SIGKILL                                  the next server continues the journal with epoch + 1
"""

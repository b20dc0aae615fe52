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
- poller.py       epoll: which descriptors are ready, and which part is told
- acceptor.py     accepts; a peer that has not introduced itself is unidentified
- connection.py   frames of one peer, half read and half sent
- handshake.py    who may come in
- sessions.py     who may talk, and under which session
- processes.py    the living processes that the server knows, and how each is told something
- absentees.py    members that have left although their process lives
- service.py      puts the parts that serve the books together
- dispatch.py     routes messages to the books
- delivery.py     carries out what the books decide: journal first, then processes
- departures.py   what becomes of processes that end, or that only the journal tells of
- journal_writer.py  what could not be written down yet, and which processes have not been heard yet
- journal.py      what the next server must know, in place on disk
- members.py      one small file per attached process, for the day the journal is torn
- libc.py         what Python does not offer
- collecting.py   asks processes for their reports, when somebody wants statistics
- logfile.py      its log, of bounded size; put back when it vanishes

How the server ends:

    when                                     what then
    nobody connected, nothing held, linger   Goodbye, journal emptied, exit 0
    Leave or SIGTERM                         Goodbye; the journal stays while living processes hold slots
    another server took its files' place     Goodbye, journal left alone, exit 0
    SIGKILL                                  the next server continues the journal with epoch + 1
"""

"""The books: a pure state machine. No clock, no lock, no socket, no thread.

    event + time --> Books.apply --> decisions
                        |
                        |     books.py         of one server: which event belongs to which pool
                        |
                        +-- pool.py            one pool: an event becomes a transition or a verdict, then all is settled
                        |     ledger.py        every transition of a slot, with its record, message and counter
                        |       table.py       the slots, and the counts derived from them
                        |       slot.py        one slot, and the transitions that are legal
                        |       breaker.py     the back-off when opening fails
                        |     waiting.py       the line of those who wait
                        |     declarations.py  the options and bounds in force, and who declared them
                        |     generations.py   what is stale, and whether the pool is closed
                        |     control.py       declarations and commands: journalled, and told to the processes
                        |     service.py       who is served next, and how many more slots would be of use
                        |     lanes.py         who uses what in which lane, and whose turn it is
                        |     capacity.py      the bounds in force: cap, inner bounds, openings at a time
                        |     min_size.py      resources that are kept open although nobody waits
                        |     returns.py       the verdict on a slot that was brought back
                        |     reclaim.py       the processes that are asked to bring slots back
                        |     sharing.py       the measures of both: when a slot may move, and to whom
                        |     refusals.py      checkouts that get nothing, and what they are told
                        |     eviction.py      identities that nobody uses any more
                        +-- budgets.py           the budgets of the server
                        |     budget.py            one cap over several pools: who is served, who owes slots
                        |     shares.py            max-min, as arithmetic
                        |
                        +-- token_books.py     who fetches which token, and who waits for it
                        |     token_entry.py, token_trouble.py
                        |
                        +-- memory.py            what the journal said of what nobody has declared yet
                        +-- figures.py           pools and budgets for the statistics
                        +-- outbox.py          decisions that nobody has taken out yet
                        +-- shared.py          what the pools of one server share

events.py, decisions.py and tokens.py are also the messages on the wire. heap.py walks heaps in order. The time is an
argument everywhere. A part owns its state and nobody else changes it; policies return verdicts, and pool.py carries
them out.
"""

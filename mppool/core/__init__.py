"""The books: a pure state machine. No clock, no lock, no socket, no thread.

    event + time --> Books.apply --> decisions
                        |
                        |     books.py         of one server: which event belongs to which pool
                        |
                        +-- pool.py            the books of one pool; owns all its state
                        |     table.py         its slots, and the counts derived from them
                        |     slot.py          one slot, and the transitions that are legal
                        |     waiting.py       who waits, in order
                        |     bounds.py        what stands in whose way: cap, inner bounds, breakers
                        |     sharing.py       who gets the next slot, and when one may be moved
                        |     returns.py       what becomes of a slot that was brought back
                        |     reclaim.py       whom to ask to bring slots back
                        |     breaker.py       what happens when opening fails
                        |     inventory.py     what happens when a process attaches
                        |     upkeep.py        min_size, what is idle too long, what is stale
                        |     eviction.py      identities that nobody uses any more
                        |     snapshot.py      what it knows, for statistics
                        +-- token_books.py     who fetches which token, and who waits for it
                        |
                        +-- surroundings.py    what all these share: decisions not yet taken out

events.py, decisions.py and tokens.py are also the messages on the wire. statistics.py names counters, heap.py
walks heaps in order. The time is an argument everywhere.
"""

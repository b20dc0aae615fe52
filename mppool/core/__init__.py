"""The books: a pure state machine. No clock, no lock, no socket, no thread.

    event + time --> Books.apply --> decisions
                        |
                        +-- pool.py       the books of one pool: slots, waiters, breakers, generation
                        +-- table.py      its slots, and the counts derived from them
                        +-- waiting.py    who waits, in order
                        +-- sharing.py    who gets the next slot, and when one may be moved
                        +-- reclaim.py    whom to ask to bring slots back
                        +-- breaker.py    what happens when opening fails

The events and decisions are also the messages on the wire. The time is an argument everywhere.
"""

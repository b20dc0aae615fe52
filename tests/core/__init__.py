"""The books under attack: no process, no sleep, no real clock.

desk.py        books with a manual clock, for tests that read like a conversation
test_*.py      what the books say, sentence by sentence
model/         a faithful small model of everything around the books: workers, channels, a journal
test_books_machine.py   the model driven by hypothesis: many steps, many processes
explorer.py    the same model, small, through *every* interleaving
"""

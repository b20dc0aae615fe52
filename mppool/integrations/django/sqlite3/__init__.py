"""Django's sqlite3 backend over a pool of all processes."""

"""Django's oracle backend over a pool of all processes."""

"""Django's postgresql backend over a pool of all processes."""

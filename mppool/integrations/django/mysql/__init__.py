"""Django's mysql backend over a pool of all processes."""

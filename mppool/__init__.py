"""One pool for all the processes of an application."""

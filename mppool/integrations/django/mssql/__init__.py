"""mssql-django's backend over a pool of all processes."""

"""Django's backends over one pool for all processes: `ENGINE = "mppool.integrations.django.postgresql"`.

    DATABASES = {"default": {..., "OPTIONS": {"pool": {"manager": "shop", "max_size": 20}}}}

`OPTIONS["pool"]`: the options of the pool, with "manager" (a name, or a manager) and "name" (else the alias); or
True. Without it a backend is Django's own.

  pooling.py       what all of them have in common
  recipe.py        how a connection is opened, given back and checked
  hosted.py        the same in hosts
  <backend>/       Django's, or mssql-django's, with that in front of it
"""

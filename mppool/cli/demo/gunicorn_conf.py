"""gunicorn's configuration in `mppool demo`. mppool needs none of it, and no hook."""

loglevel = "info"
# Beside the demonstration's other files, which it removes at its end.
control_socket = "gunicorn.ctl"

# mppool needs no hook and no setting. These are gunicorn's own.
bind = "127.0.0.1:8000"
preload_app = True
workers = 4
worker_class = "gthread"
threads = 4

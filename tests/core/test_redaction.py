"""What could be a secret is not told: in texts that travel, and in the frames of tracebacks."""

from __future__ import annotations

import pytest

from mppool.redaction import HIDDEN, without_secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "could not connect to postgresql://app:hunter2@db/shop: refused",
        "postgresql+psycopg://app:p@ss/hunter2@db:5432/shop",
        "redis://:hunter2@cache:6379/0",
        "amqp://guest:hunter2@mq,amqp://guest:hunter2@mq2",
        "https://hunter2hunter2hunter2@git.example/x",
        "DRIVER={ODBC Driver 18};SERVER=db;UID=sa;PWD=hunter2",
        "Driver=x;Pwd={hun;}}hunter2};Server=db",
        "Server=db;Password=with blanks hunter2;Database=x",
        "host=db user=app password=hunter2 dbname=shop",
        "host=db password='it is \\' hunter2' dbname=shop",
        "{'user': 'app', 'password': 'hunter2'}",
        '{"user": "app", "client_secret": "hunter2"}',
        "b'password: hunter2'",
        "('password', 'hunter2')",
        "connect(passwd='hunter2', db='shop')",
        "DB_PASSWORD=hunter2",
        "passphrase => hunter2",
        "AccountName=a;AccountKey=hunter2==;EndpointSuffix=core",
        "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=hunter2=",
        "https://a.blob/c?sv=2024&sig=hunter2%3D&se=1",
        "api_key: hunter2",
        "X-Api-Key: hunter2",
        "Authorization: Bearer hunter2hunter2",
        "access_token=hunter2&scope=x",
        "the token eyJhbGciOiJhunter2.eyJhunter2.hunter2 has expired",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    told = without_secrets(text)
    assert SECRET not in told
    assert HIDDEN in told
    assert without_secrets(told) == told


@pytest.mark.parametrize(
    "text",
    [
        'OperationalError: connection to server at "db", port 5432 failed: Connection refused',
        'FATAL: password authentication failed for user "app"',
        "('28000', \"[28000] [Microsoft] Login failed for user 'sa'. (18456)\")",
        "[Errno 2] No such file or directory: '/etc/passwd'",
        "https://db.example:8443/path?x=1",
        "ssh://git@host/x",
        "signal: 9, design: blue, passed: 3, compass: north",
        "KeyError: 'user'",
    ],
)
def test_what_is_no_secret_is_told(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "part", ["password", "a", "x://a:", "pwd: a ", "{", "eyJ", "basic ", "-----BEGIN "], ids=repr
)
def test_a_long_text_takes_no_time_that_grows_with_its_square(part: str) -> None:
    """The judge is the time limit of a test: a search whose cost is quadratic would take many minutes."""
    text = part * (100_000 // len(part))
    assert SECRET not in without_secrets(f"{text} password={SECRET}")

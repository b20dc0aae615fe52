"""What the tests of blob clients have in common."""

from __future__ import annotations

import hashlib
import os
from typing import Any


def new_container(client: Any) -> Any:
    return client.create_container(f"c{os.urandom(8).hex()}")


def content_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * 64


def round_trip(client: Any, container: str, name: str) -> bool:
    blob = client.get_blob_client(container, name)
    blob.upload_blob(content_of(name), overwrite=True)
    return bool(blob.download_blob().readall() == content_of(name))

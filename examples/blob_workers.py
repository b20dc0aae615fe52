"""Four processes and one pool of blob clients, made before the fork.

BLOB_ACCOUNT=shopdata python examples/blob_workers.py         # as the signed-in user (azure-identity)
BLOB_CONNECTION_STRING=... python examples/blob_workers.py    # with a key, or for Azurite
"""

import multiprocessing
import os
import uuid

from azure.core.credentials import TokenCredential
from azure.storage.blob import BlobServiceClient

from mppool import PoolManager
from mppool.azure import BlobServicePool

manager = PoolManager("shop")
blobs = BlobServicePool(manager)
CONTAINER = f"example-{uuid.uuid4()}"


def client() -> BlobServiceClient:
    """Cheap when there is one already: ask whenever you need it."""
    if connection_string := os.environ.get("BLOB_CONNECTION_STRING"):
        return blobs.client_from_connection_string(connection_string)
    return blobs.client(credential(), os.environ["BLOB_ACCOUNT"])


_credentials: list[TokenCredential] = []


def credential() -> TokenCredential:
    """One for the whole process, and kept: the pool does not keep it."""
    if not _credentials:
        from azure.identity import DefaultAzureCredential

        _credentials.append(DefaultAzureCredential())
    return _credentials[0]


def work(worker: int) -> None:
    for number in range(5):
        blob = client().get_blob_client(CONTAINER, f"{worker}-{number}")
        blob.upload_blob(f"{worker} wrote {number}")
        assert blob.download_blob().readall().decode() == f"{worker} wrote {number}"


if __name__ == "__main__":
    container = client().create_container(CONTAINER)  # the parent uses its client before it forks
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"{len(list(container.list_blobs()))} blobs in {container.container_name}")
    container.delete_container()

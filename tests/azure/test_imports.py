"""What is loaded with credentials, and when: an application without clients pays for none."""

from __future__ import annotations

from tests.helpers import run_python

_LOADED = """
def loaded(*names):
    return sorted(name for name in sys.modules for wanted in names if name == wanted or name.startswith(wanted + "."))

HEAVY = ("asyncio", "azure", "msal", "mppool.azure.blob", "mppool.azure.clients", "mppool.azure.client_table",
         "mppool.azure.transports", "mppool.credentials.shared_async")
"""


def test_importing_azure_loads_no_asyncio_and_no_pool_of_clients() -> None:
    run_python(f"import sys, mppool.azure\n{_LOADED}\nassert not loaded(*HEAVY), loaded(*HEAVY)")


def test_a_first_credential_loads_no_asyncio_and_no_pool_of_clients() -> None:
    run_python(
        f"""
import sys
from mppool import InProcessManager, Recipe
from mppool.azure import StaticToken
{_LOADED}
class Tokens(Recipe):
    token_scope = "https://database.windows.net/.default"
    credential = StaticToken("the token")

    def open(self, opening):
        return opening.token

with InProcessManager().pool("tokens", Tokens()).checkout() as token:
    assert token.token_struct[4:].decode("utf-16-le") == "the token"
assert not loaded(*HEAVY), loaded(*HEAVY)
"""
    )


def test_a_pool_without_a_credential_loads_nothing_that_knows_credentials() -> None:
    run_python(
        f"""
import sys
from mppool import InProcessManager
{_LOADED}
with InProcessManager().pool("objects", object).checkout():
    assert not loaded("mppool.credentials.adapter", "mppool.credentials.source", "mppool.azure", *HEAVY)
"""
    )


def test_every_public_name_of_azure_can_be_had() -> None:
    run_python(
        "import mppool.azure\n"
        "assert set(mppool.azure.__all__) <= set(dir(mppool.azure))\n"
        "assert all(getattr(mppool.azure, name) is not None for name in mppool.azure.__all__)\n"
        "assert not hasattr(mppool.azure, 'nothing')"
    )

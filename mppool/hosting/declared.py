"""What a worker declares of a pool whose resources live in hosts."""

from __future__ import annotations

from typing import Any

from mppool.recipe import Recipe


class Declared(Recipe[Any]):
    """The recipe of a hosted pool, as a worker declares it: it says what is opened, and opens nothing."""

    def __init__(self, recipe: Recipe[Any]) -> None:
        self.inner = recipe
        self.credential = recipe.credential
        self.token_scope = recipe.token_scope

    def fills(self) -> bool:
        """Never here: hosts open."""
        return False

    def fingerprint(self) -> str:
        """As in the host, so that the books know both as one."""
        return self.inner.fingerprint()

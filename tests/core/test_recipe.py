"""Recipes: what is one, what is none, and which hooks there are."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest

from mppool.errors import ConfigurationError
from mppool.recipe import HOOKS, Opening, Recipe, as_recipe, overrides


class Thing:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Things(Recipe[Thing]):
    def open(self, opening: Opening) -> Thing:
        return Thing()


def open_thing() -> Thing:
    return Thing()


def open_numbered(opening: Opening) -> int:
    return opening.number


def open_with_default(size: int = 3) -> int:
    return size


def on_checkout(thing: Any) -> None: ...


def test_a_recipe_is_itself() -> None:
    recipe = Things()
    assert as_recipe(recipe, {}) is recipe


def test_a_callable_is_called_without_arguments_or_with_the_opening_where_it_takes_one() -> None:
    opening = Opening(7)
    assert isinstance(as_recipe(open_thing, {}).open(opening), Thing)
    assert as_recipe(open_numbered, {}).open(opening) == 7
    assert as_recipe(open_with_default, {}).open(opening) == 3
    assert as_recipe(functools.partial(open_with_default, 5), {}).open(opening) == 5
    assert as_recipe(dict, {}).open(opening) == {}


@pytest.mark.parametrize("thing", [None, 3, "Driver=SQLite3", {}, object()])
def test_what_cannot_be_called_is_no_recipe(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be called|is text"):
        as_recipe(thing, {})


def test_a_recipe_class_is_told_from_its_instance() -> None:
    with pytest.raises(ConfigurationError, match=r"give an instance: Things\(\.\.\.\)"):
        as_recipe(Things, {})


def test_hooks_beside_a_recipe_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="reset: hooks as keyword arguments go with a plain callable"
    ):
        as_recipe(Things(), {"reset": on_checkout})


def test_a_hook_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the hook check is 3"):
        as_recipe(open_thing, {"check": 3})


def test_it_is_known_which_hooks_there_are() -> None:
    plain = as_recipe(open_thing, {"on_checkout": on_checkout, "check": None})
    assert [hook for hook in HOOKS if overrides(plain, hook)] == ["on_checkout"]
    assert not any(overrides(Things(), hook) for hook in HOOKS)


def test_the_defaults_do_nothing_but_close() -> None:
    recipe, thing = Things(), Thing()
    recipe.configure(thing)
    recipe.on_checkout(thing)
    recipe.reset(thing)
    assert recipe.check(thing)
    assert recipe.stats(thing) == {}
    assert recipe.describe(thing) == "Thing"
    assert not thing.closed
    recipe.close(thing)
    assert thing.closed
    recipe.close(object())  # type: ignore[arg-type]  # without a close method


def test_a_recipe_that_does_not_open_says_so() -> None:
    with pytest.raises(ConfigurationError, match="Recipe does not say how to open"):
        Recipe[Any]().open(Opening(0))


def test_a_recipe_travels_with_its_hooks() -> None:
    recipe = pickle.loads(pickle.dumps(as_recipe(open_thing, {"on_checkout": on_checkout})))
    assert isinstance(recipe.open(Opening(0)), Thing)
    assert overrides(recipe, "on_checkout")


def test_fingerprints_tell_what_is_opened() -> None:
    assert as_recipe(open_thing, {}).fingerprint() == as_recipe(open_thing, {}).fingerprint()
    assert as_recipe(open_thing, {}).fingerprint() != as_recipe(open_numbered, {}).fingerprint()
    assert Things().fingerprint().endswith("Things")


def test_an_opening_does_not_show_its_token() -> None:
    assert "hunter2" not in repr(Opening(1, "bob", "hunter2"))

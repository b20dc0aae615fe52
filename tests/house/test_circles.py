"""The rules of the house that a program can count. The lists in `allowed.py` only ever get shorter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from tests.house import allowed, source

AS_LISTED: dict[str, list[str]] = {
    "new: mend it, for the list never grows": [],
    "mended: take it out of the list": [],
    "twice in the list": [],
}


def compared(found: Iterable[str], listed: Collection[str]) -> dict[str, list[str]]:
    """What is found and not listed, and what is listed and not found any more."""
    now = set(found)
    differences = [
        now - set(listed),
        set(listed) - now,
        {name for name, number in Counter(listed).items() if number > 1},
    ]
    return dict(zip(AS_LISTED, map(sorted, differences), strict=True))


def test_no_new_module_is_in_a_circle_of_imports() -> None:
    """Imports for types count, and those inside functions: a circle of ideas is one wherever it is written."""
    found = {name for circle in source.circles(source.imports()) for name in circle}
    assert compared(found, allowed.IN_CIRCLES) == AS_LISTED


def test_nothing_of_ours_is_imported_by_a_name_in_a_string() -> None:
    """Such an import is hidden from the layers contract, from mypy and from the test above."""
    assert compared(source.imports_by_string(), allowed.BY_STRING) == AS_LISTED


def test_files_are_short() -> None:
    """A long file is where to ask whether it holds two ideas."""
    long = {name for name, lines in source.lines().items() if lines > 450}
    assert compared(long, allowed.LONG_FILES) == AS_LISTED


def test_functions_fit_a_screen() -> None:
    """Longer ones do two things."""
    assert compared(source.long_functions(60), allowed.LONG_FUNCTIONS) == AS_LISTED


def test_the_state_of_a_resource_is_assigned_by_its_owner_alone() -> None:
    """One state, one file: every transition is a method of its owner."""
    found = source.assignments("state", "mppool.worker")
    assert found == allowed.WRITERS_OF_A_STATE


def test_the_table_of_resources_is_changed_by_its_owner_alone() -> None:
    """Taking the inventory and registering a grant are right only as long as nobody else changes the table."""
    found = source.entries_changed("table", "mppool.worker")
    assert found == allowed.WRITERS_OF_THE_TABLE


def test_one_file_registers_what_happens_at_a_fork() -> None:
    """There what is renewed first is stated; elsewhere it would depend on the order of imports."""
    assert source.callers("register_at_fork") == {"mppool.process.fork"}


# --- the counting itself ----------------------------------------------------------------------------------


def test_a_list_is_compared_both_ways() -> None:
    assert list(compared(["a", "b", "b"], ["b", "c", "c"]).values()) == [["a"], ["c"], ["c"]]


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str](), "e": {"f"}, "f": {"e"}}
    assert sorted(map(sorted, source.circles(graph))) == [["a", "b", "c"], ["e", "f"]]


def test_without_a_circle_none_is_found() -> None:
    assert source.circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_for_types_and_inside_functions_count() -> None:
    """`mppool.__init__` imports PoolManager for types only, and the manager's own imports include functions'."""
    found = source.imports()
    assert "mppool.manager" in found["mppool"]
    assert "mppool.rendezvous.launch" in found["mppool.rendezvous.locator"]

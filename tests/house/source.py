"""What the source of mppool says about itself: who imports whom, how long things are, who assigns what.

Nothing here imports mppool: the source is parsed.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "mppool"
_OURS = re.compile(rf"{PACKAGE}(\.\w*)+")


@cache
def modules() -> dict[str, ast.Module]:
    """The parsed source of each module, by its dotted name."""
    found = {}
    for path in sorted(ROOT.joinpath(PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports() -> dict[str, set[str]]:
    """Whom each module imports: for types only, inside functions, and on its top level alike."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, tree in known.items():
        found[name] = {target for node in ast.walk(tree) for target in _targets(node, known)} - {
            name
        }
    return found


def _targets(node: ast.AST, known: dict[str, ast.Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in known:
                yield inner
            elif node.module in known:
                yield node.module


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of modules of which each reaches each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            circle = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(circle) > 1:
                found.append(circle)

    for name in graph:
        if name not in order:
            visit(name)
    return found


def imports_by_string() -> set[str]:
    """Modules that import one of ours by a name in a string."""
    return {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _imports_ours_by_string(node, tree)
    }


def _imports_ours_by_string(call: ast.Call, module: ast.Module) -> bool:
    """A name that is not written in the call itself may be any string of the module that looks like one."""
    if _called(call) not in {"import_module", "__import__"}:
        return False
    is_written_here = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return any(map(_OURS.fullmatch, _strings(call if is_written_here else module)))


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _strings(node: ast.AST) -> Iterator[str]:
    """All strings within, but for names of loggers."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if not (isinstance(node, ast.Call) and _called(node) == "Log"):
        for inner in ast.iter_child_nodes(node):
            yield from _strings(inner)


def callers(function: str) -> set[str]:
    """Modules that call a function of this name."""
    return {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node) == function
    }


def lines() -> dict[str, int]:
    """How many lines each file has."""
    return {
        str(path.relative_to(ROOT / PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.joinpath(PACKAGE).rglob("*.py")
    }


def long_functions(most: int) -> set[str]:
    """`module:function` of more lines than that."""
    return {
        f"{name}:{node.name}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or node.lineno) - node.lineno >= most
    }


def assignments(attribute: str, where: str) -> dict[str, int]:
    """How often each module below `where` assigns an attribute of that name, of whatever object."""
    found: dict[str, int] = defaultdict(int)
    for name, tree in modules().items():
        if name.startswith(where):
            for node in ast.walk(tree):
                for target in _assigned(node):
                    if isinstance(target, ast.Attribute) and target.attr == attribute:
                        found[name] += 1
    return dict(found)


def entries_changed(attribute: str, where: str) -> dict[str, int]:
    """How often each module below `where` changes a dictionary of that name: an entry set, deleted or popped."""
    found: dict[str, int] = defaultdict(int)
    for name, tree in modules().items():
        if not name.startswith(where):
            continue
        for node in ast.walk(tree):
            for target in _assigned(node):
                if isinstance(target, ast.Subscript) and _is_named(target.value, attribute):
                    found[name] += 1
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"pop", "popitem", "clear", "update", "setdefault"}
                and _is_named(node.func.value, attribute)
            ):
                found[name] += 1
    return dict(found)


def _assigned(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, (ast.Assign, ast.Delete)):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        yield node.target


def _is_named(node: ast.expr, attribute: str) -> bool:
    return getattr(node, "attr", getattr(node, "id", None)) == attribute

"""What is put into the source of the copy: points between statements, and marks in the handlers of exceptions."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

HANDLERS: set[str] = set()
"""All handlers of the modules that were loaded."""


@cache
def compiled(path: Path, module: str, has_points: bool) -> Any:
    """module: of mppool; empty: one of the standard library, in which nothing is marked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if module:
        tree = _Marks(module).visit(tree)
    if has_points:
        tree = _Points().visit(tree)
    return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


class _Marks(ast.NodeTransformer):
    """Puts a mark into each handler of an exception: that is where mppool recovers."""

    def __init__(self, module: str) -> None:
        self._within = [module]
        self._seen: Counter[str] = Counter()

    def visit_ClassDef(self, node: ast.ClassDef | _Function) -> ast.AST:
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef  # noqa: N815  # ast's names

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        kind = "" if node.type is None else ast.unparse(node.type)
        name = f"{'.'.join(self._within)}: {kind}"
        self._seen[name] += 1
        if self._seen[name] > 1:
            name += f" ({self._seen[name]})"
        HANDLERS.add(name)
        node.body.insert(0, ast.copy_location(_call("simulated_mark", name), node.body[0]))
        return node


class _Points(ast.NodeTransformer):
    """Puts a point before each statement of each function. Not in finalizers, which may run anywhere."""

    _UNTOUCHED = ("__del__", "abandon", "descriptors", "__str__", "__repr__", "__hash__", "__eq__")

    def visit_FunctionDef(self, node: _Function) -> ast.AST:
        if node.name not in self._UNTOUCHED:
            node.body = self._with_points(node.body, is_function=True)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # ast's name

    def _with_points(self, body: list[ast.stmt], *, is_function: bool = False) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for index, statement in enumerate(body):
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(statement, field, None)
                if inner and not isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                    setattr(statement, field, self._with_points(inner))
            for handler in getattr(statement, "handlers", ()):
                handler.body = self._with_points(handler.body)
            if isinstance(statement, _FUNCTIONS):
                statement = self.visit_FunctionDef(statement)  # type: ignore[assignment]
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_name = isinstance(statement, (ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom))
            if not (is_name or (is_function and index == 0 and is_text)):
                found.append(ast.copy_location(_call("simulated_point"), statement))
            found.append(statement)
        return found


def _call(function: str, *arguments: str) -> ast.Expr:
    name = ast.Name(function, ast.Load())
    return ast.Expr(ast.Call(name, [ast.Constant(text) for text in arguments], []))

"""What ends a section runs handlers of signals, and may raise. Cython (3.1 to 3.3) leaks what a function was about to
return where the end of a `with` or a `finally` raises: so compiled modules return after it, not from within."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILED = re.findall(r'^    "(skate\.[\w.]+)",$', (ROOT / "setup.py").read_text(), re.MULTILINE)
#: ends of sections
ENDS = re.compile(r"leave_section|\.leave\(|\.give_up\(|\.end_reading\(")
SECTIONS = re.compile(r"^section$|\.lock$|\.step( as \w+)?$")
#: return types of which nothing can leak
IMMORTAL = {"bool", "None"}


def returns_within(node: ast.AST, inside: bool = False) -> Iterator[ast.Return]:
    """The returns of a function that leave a section."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Return) and inside and child.value is not None:
            yield child
        if isinstance(child, ast.With):
            within = inside or any(SECTIONS.search(ast.unparse(item)) for item in child.items)
        elif isinstance(child, ast.Try):
            within = inside or any(ENDS.search(ast.unparse(each)) for each in child.finalbody)
        else:
            within = inside
        yield from returns_within(child, within)


@pytest.mark.parametrize("module", COMPILED)
def test_nothing_is_returned_out_of_a_section(module: str) -> None:
    path = ROOT / "pkg" / f"{module.replace('.', '/')}.py"
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and (
            function.returns is None or ast.unparse(function.returns) not in IMMORTAL
        ):
            lines = [each.lineno for each in returns_within(function)]
            assert not lines, f"{path}, {function.name}: {lines}"

"""Imports flow one way, and the machines of core know neither sockets, clocks, threads nor chance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import skate

ROOT = Path(skate.__file__).parent

#: from the bottom to the top; a module may import its own layer and those below
LAYERS = (
    (
        "ids",
        "exceptions",
        "task_error",
        "exception_transport",
        "dependencies",
        "reducers",
        "config",
        "options",
        "callables",
        "untouched",
        "_c",
    ),
    ("wire",),
    ("core",),
    ("net", "store"),
    ("runtime",),
    ("driver", "node", "worker"),
    ("api",),
    ("util", "cli_tables", "cli", "actor", "cluster_utils"),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

#: (module, what it imports from above, for annotations alone): the current task, which is the worker's
ANNOTATIONS_FROM_ABOVE = {("runtime.current", "worker.executor")}

#: what core may not import: whoever calls a machine brings the time, and does the I/O
IMPURE = {
    "asyncio", "concurrent", "datetime", "multiprocessing", "os", "pathlib", "psutil", "queue", "random", "secrets",
    "select", "selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid", "zmq",
}  # fmt: skip
#: what tells how long something takes, or waits
CLOCK = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"}
#: and what it may not call
IMPURE_CALLS = {"open", "print", "input", "breakpoint", "id", "exec", "eval"}


class Import(NamedTuple):
    module: str
    line: int
    for_annotations: bool


def modules() -> dict[str, Path]:
    """Name below skate -> file, for each Python module of the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[
            ".".join(parts if parts == ("__init__",) else [part for part in parts if part != "__init__"])
        ] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file, also those inside functions."""

    def walk(node: ast.AST, for_annotations: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, for_annotations)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: a relative import"
                for alias in child.names:
                    yield Import(f"{child.module}.{alias.name}", child.lineno, for_annotations)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), True)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), for_annotations)
            else:
                yield from walk(child, for_annotations)

    yield from walk(ast.parse(path.read_text()), False)


def below_skate(name: str) -> str | None:
    """The module of skate that an imported name comes from, without the prefix; "__init__" for skate itself."""
    parts = name.split(".")
    if parts[0] != "skate":
        return None
    parts = parts[1:]
    if parts and parts[0] == "_c":
        return "_c"  # its modules are no Python files
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or "__init__"


def level_of(module: str) -> int:
    return LEVEL[module.split(".")[0]]


def test_every_module_has_a_layer() -> None:
    assert {module.split(".")[0] for module in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_flow_one_way(module: str) -> None:
    wrong = []
    for found in imports(MODULES[module]):
        target = below_skate(found.module)
        if target is None or level_of(target) <= level_of(module):
            continue
        if found.for_annotations and (module, target) in ANNOTATIONS_FROM_ABOVE:
            continue
        wrong.append(f"{MODULES[module]}:{found.line} imports {found.module}")
    assert not wrong


def test_net_and_store_do_not_know_each_other() -> None:
    for module, path in MODULES.items():
        for found in imports(path):
            names = {module.split(".")[0], (below_skate(found.module) or "").split(".")[0]}
            assert names != {"net", "store"}, f"{path}:{found.line}"


@pytest.mark.parametrize("module", [module for module in MODULES if level_of(module) == LEVEL["core"]])
def test_core_is_pure(module: str) -> None:
    path = MODULES[module]
    for found in imports(path):
        assert found.module.split(".")[0] not in IMPURE, f"{path}:{found.line} imports {found.module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in IMPURE_CALLS, f"{path}:{node.lineno} calls {name}"
            last = name.rsplit(".", 1)[-1]
            assert last not in CLOCK | {"time_ns", "urandom"}


@pytest.mark.parametrize("name", MODULES)
def test_there_is_one_clock(name: str) -> None:
    """Programs freeze `time` in their tests: what the package waits by is asked of `_c.clock`, nowhere else."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        asked = node.attr if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time" else ""
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else [asked]
        if asked or (isinstance(node, ast.ImportFrom) and node.module == "time"):
            assert not CLOCK.intersection(names), (
                f"{MODULES[name]}:{node.lineno} asks `time`: ask skate._c.clock"
            )


def test_the_walk_sees_imports_wherever_they_are() -> None:
    """A test that finds nothing would pass as well."""
    seen = {found.module: found.for_annotations for found in imports(MODULES["runtime.current"])}
    assert seen["skate.worker.executor.Executor"] is True
    assert any(below_skate(found.module) == "driver.session" for found in imports(MODULES["api.session"]))
    assert below_skate("skate._c.refs.Guard") == "_c"
    assert below_skate("skate.runtime.current") == "runtime.current"
    assert below_skate("skate") == "__init__"

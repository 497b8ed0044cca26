"""The systems that are measured, one adapter a file. A file with a CONTENDER is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from perf.contenders.base import Contender

_SHARED = {"base", "raylike", "futures"}
#: The order of the table's columns; others follow by name.
_FIRST = ["skate", "zeromq", "ray", "executor", "loky", "dask"]


def names() -> list[str]:
    """Every contender there is an adapter for, in the order of the table's columns."""
    found = {module.name for module in pkgutil.iter_modules(__path__)} - _SHARED
    return [name for name in _FIRST if name in found] + sorted(found - set(_FIRST))


def load(name: str) -> Contender:
    """The adapter, not started. Imports nothing of the system itself."""
    return importlib.import_module(f"perf.contenders.{name}").CONTENDER

"""The questions, one script each. A new file here is found by itself, and each Measurement in it."""

from __future__ import annotations

import importlib
import pkgutil

from perf.model import Measurement

#: The order in which the table reads best; scripts not named here follow by name.
_FIRST = [
    "tasks",
    "actors",
    "objects",
    "store",
    "arguments",
    "sizes",
    "crowds",
    "graphs",
    "pipeline",
    "groups",
    "nodes",
    "session",
    "lanes",
    "limits",
]


def scripts() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return [name for name in _FIRST if name in found] + sorted(found - set(_FIRST))


def measurements(script: str) -> list[Measurement]:
    """A script's measurements, in the order they are written."""
    module = importlib.import_module(f"perf.rows.{script}")
    return [thing for thing in vars(module).values() if isinstance(thing, Measurement)]


def every_measurement() -> list[Measurement]:
    return [measurement for script in scripts() for measurement in measurements(script)]

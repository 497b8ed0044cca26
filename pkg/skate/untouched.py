"""Parts of the standard library as they are made, whatever a program has patched.

gevent and eventlet take epoll away, and put queues that know one thread only in the place of Python's.

A leaf. State: copies of the modules.
"""

from __future__ import annotations

import _thread
import importlib.util
from types import BuiltinFunctionType, ModuleType
from typing import Any


def _copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


select: Any = _copy("select")
SimpleQueue: Any = _copy("_queue").SimpleQueue


def who_patched_threads() -> str | None:
    """The package that has replaced Python's threads, where one has."""
    start: Any = _thread.start_new_thread
    if isinstance(start, BuiltinFunctionType):
        return None
    return str(getattr(start, "__module__", None) or "something").partition(".")[0]

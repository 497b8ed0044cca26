"""skate: tasks, actors and objects for Python, with Ray's programming model and a fraction of its overhead.

import skate

@skate.remote
def square(x):
    return x * x

print(skate.get([square.remote(i) for i in range(4)]))  # [0, 1, 4, 9]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skate import exceptions, util
from skate._c.refs import ObjectRef
from skate.api.context import (
    RuntimeContext,
    available_resources,
    cluster_resources,
    get_gpu_ids,
    get_runtime_context,
    nodes,
)
from skate.api.objects import get, put, wait
from skate.api.remote_function import RemoteFunction, make_remote
from skate.api.session import init, is_initialized, shutdown

__version__ = "0.1.0"


def remote(*args: Any, **options: Any) -> Any:
    """Makes a function run in workers: `@skate.remote`, or `@skate.remote(num_cpus=2, ...)`.

    See skate.options for the options. Raises ValueError for an unknown one.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return make_remote(args[0], {})
    if args:
        raise TypeError("use @skate.remote alone, or with keyword arguments: @skate.remote(num_cpus=2)")
    if not options:
        raise TypeError("use @skate.remote without brackets, or say an option: @skate.remote(num_cpus=2)")

    def decorate(target: Callable[..., Any]) -> Any:
        return make_remote(target, options)

    return decorate


__all__ = [
    "ObjectRef",
    "RemoteFunction",
    "RuntimeContext",
    "available_resources",
    "cluster_resources",
    "exceptions",
    "get",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "util",
    "wait",
]

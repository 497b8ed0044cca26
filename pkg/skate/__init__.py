"""skate: tasks, actors and objects for Python, with Ray's programming model and a fraction of its overhead.

import skate

@skate.remote
def square(x):
    return x * x

print(skate.get([square.remote(i) for i in range(4)]))  # [0, 1, 4, 9]
"""

from __future__ import annotations

from skate import actor, exceptions, util
from skate._c.refs import ObjectRef
from skate.api.actor_class import ActorClass, method
from skate.api.actor_handle import ActorHandle
from skate.api.actors import exit_actor, get_actor, kill
from skate.api.context import (
    RuntimeContext,
    available_resources,
    cluster_resources,
    get_gpu_ids,
    get_runtime_context,
    nodes,
)
from skate.api.objects import get, put, wait
from skate.api.remote import remote
from skate.api.remote_function import RemoteFunction
from skate.api.session import init, is_initialized, shutdown
from skate.config import VERSION
from skate.runtime.streams import DynamicObjectRefGenerator, ObjectRefGenerator

__version__ = VERSION


__all__ = [
    "ActorClass",
    "ActorHandle",
    "DynamicObjectRefGenerator",
    "ObjectRef",
    "ObjectRefGenerator",
    "RemoteFunction",
    "RuntimeContext",
    "actor",
    "available_resources",
    "cluster_resources",
    "exceptions",
    "exit_actor",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "util",
    "wait",
]

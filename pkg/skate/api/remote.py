"""`@skate.remote` itself. No state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from skate.api.actor_class import ActorClass
from skate.api.remote_function import RemoteFunction
from skate.options import validate_actor_options, validate_task_options


def remote(*args: Any, **options: Any) -> Any:
    """Makes a function run in workers, and a class an actor: `@skate.remote`, or `@skate.remote(num_cpus=2, ...)`.

    See skate.options for the options. Raises ValueError for an unknown one.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _decorated(args[0], {})
    if args:
        raise TypeError("use @skate.remote alone, or with keyword arguments: @skate.remote(num_cpus=2)")
    if not options:
        raise TypeError("use @skate.remote without brackets, or say an option: @skate.remote(num_cpus=2)")

    def decorate(target: Callable[..., Any]) -> Any:
        return _decorated(target, options)

    return decorate


def _decorated(target: Any, options: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        return ActorClass(target, validate_actor_options(**options))
    if not callable(target) or isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"@skate.remote goes on a function or a class, not on {target!r}")
    return RemoteFunction(target, validate_task_options(**options))

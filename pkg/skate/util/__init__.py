"""What belongs to Ray's `ray.util`: modules beside the core API.

Most are imported when they are first asked for, so that `import skate` stays quick. `placement_group` is both a module
and the function in it, as in Ray: as an attribute it is the function, because the module is imported here first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skate.api.actors import list_named_actors
from skate.util import state
from skate.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

if TYPE_CHECKING:
    from skate.util import (
        actor_pool,
        executor,
        helpers,
        multiprocessing,
        queue,
        scheduling_strategies,
    )
    from skate.util.actor_pool import ActorPool
    from skate.util.executor import SkateExecutor
    from skate.util.helpers import as_completed, map_unordered

#: name -> the module that it is in; None for a module itself
_LATER = {
    "ActorPool": "actor_pool",
    "SkateExecutor": "executor",
    "actor_pool": None,
    "as_completed": "helpers",
    "executor": None,
    "helpers": None,
    "map_unordered": "helpers",
    "multiprocessing": None,
    "queue": None,
    "scheduling_strategies": None,
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_LATER[name] or name}")
    value = module if _LATER[name] is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "ActorPool",
    "SkateExecutor",
    "actor_pool",
    "as_completed",
    "executor",
    "get_current_placement_group",
    "get_placement_group",
    "helpers",
    "list_named_actors",
    "map_unordered",
    "multiprocessing",
    "placement_group",
    "placement_group_table",
    "queue",
    "remove_placement_group",
    "scheduling_strategies",
    "state",
]

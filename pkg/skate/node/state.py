"""What processes of the node may ask about it. No state of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from skate.core.admission import Admission
from skate.node.spiller import Spiller
from skate.store.local import LocalStore


class NodeState:
    """The answers to StateQuery."""

    def __init__(
        self,
        admission: Admission,
        store: LocalStore,
        spiller: Spiller,
        labels: dict[str, str],
        workers: Callable[[], Any],
        nodes: Callable[[], Any],
        manager: Any,
    ) -> None:
        self._store = store
        resources = admission.resources
        self._answers: dict[str, Callable[[], Any]] = {
            "total": resources.total_dict,
            "available": lambda: self._without_store(resources.available_dict()),
            "demands": admission.demands,
            "labels": lambda: labels,
            "store": store.usage,
            "spilled": spiller.machine.stats,
            "spilled objects": spiller.listing,
            "workers": workers,
            "nodes": nodes,
            "tables": lambda: table_sizes(manager),
        }

    def answer(self, what: str) -> Any:
        """The answer to one question, plain values; None to one that is not known."""
        known = self._answers.get(what)
        return None if known is None else known()

    def _without_store(self, available: dict[str, float]) -> dict[str, float]:
        """The store's memory is free as far as no object takes it."""
        available["object_store_memory"] -= self._store.usage()["used"]
        return available


def table_sizes(root: Any) -> dict[str, int]:
    """How many entries an object's tables have, and those of the parts of skate that it is made of: {"Class.table": n}.

    What grows there with what a program has done, and not with what it holds, is a leak.
    """
    sizes: dict[str, int] = {}
    parts, seen = [root], {id(root)}
    while parts:
        part = parts.pop()
        for name, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, dict | set | list | deque):
                label = f"{type(part).__name__}.{name}"
                sizes[label] = sizes.get(label, 0) + len(value)
            elif type(value).__module__.startswith("skate.") and id(value) not in seen:
                seen.add(id(value))
                parts.append(value)
    return sizes

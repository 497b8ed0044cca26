"""The functions that a worker knows, by the digest of their pickle, until all who sent them have forgotten them.

State: the functions, and of each who has sent it. An owner says what a worker may forget, which is never what it has
pushed and not been answered; so what a worker is asked to run it has. Those of owners that are dead go when the worker
next serves another one.
"""

from __future__ import annotations

from typing import Any

from skate._c.steps import Steps
from skate.ids import NodeId, ProcessId


class Loaded:
    """A function as this worker has it: its pickle until it is first called, then itself."""

    __slots__ = ("call", "calls", "name", "owners", "pickled")

    def __init__(self, owner: ProcessId, name: str, pickled: bytes) -> None:
        #: who counts on it that the worker has it
        self.owners = [owner]
        self.name = name
        self.pickled: bytes | None = pickled
        self.call: Any = None
        self.calls = 0


class Functions:
    """The functions of a worker. Every method is called under the lock."""

    def __init__(self, lock: Steps) -> None:
        self._lock = lock
        self.by_id: dict[bytes, Loaded] = {}
        #: those whose last owner is dead
        self._unowned: list[bytes] = []

    def exported(self, owner: ProcessId, function: bytes, name: str, pickled: bytes) -> None:
        """An owner has sent a function."""
        loaded = self.by_id.get(function)
        if loaded is None:
            self.by_id[function] = Loaded(owner, name, pickled)
        elif owner not in loaded.owners:
            loaded.owners.append(owner)

    def forgotten(self, owner: ProcessId, functions: list[bytes]) -> None:
        """An owner sends these again before it asks for them again."""
        for function in functions:
            loaded = self.by_id.get(function)
            if loaded is not None and owner in loaded.owners:
                loaded.owners.remove(owner)
                self._drop_unowned(function)

    def owner_died(self, gone: ProcessId | NodeId) -> None:
        """A process is gone, or a node. (What it has asked for may be about to begin.)"""
        for function, loaded in self.by_id.items():
            if any(owner.startswith(gone) for owner in loaded.owners):
                loaded.owners = [owner for owner in loaded.owners if not owner.startswith(gone)]
                self._unowned.append(function)

    def serves_another(self) -> None:
        """The worker is to serve an owner that lives: nothing runs of those that do not."""
        unowned, self._unowned = self._unowned, []
        for function in unowned:
            self._drop_unowned(function)

    def _drop_unowned(self, function: bytes) -> None:
        loaded = self.by_id.get(function)
        if loaded is not None and not loaded.owners:
            del self.by_id[function]
            self._lock.drop_later(loaded)  # its closure may hold anything

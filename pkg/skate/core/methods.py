"""How a method of an actor is called on the way: by an id that says its name and its concurrency group. No state."""

from __future__ import annotations

from hashlib import blake2b

#: the group of methods that name none
DEFAULT_GROUP = ""
#: methods that every actor has, as in Ray
BUILT_IN = ("__ray_ready__", "__ray_call__", "__ray_terminate__")


def method_id(name: str, group: str) -> bytes:
    """16 bytes, the same in each process."""
    return blake2b(f"{name}\0{group}".encode(), digest_size=16).digest()

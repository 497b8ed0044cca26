"""The arguments of a call, packed for the way and unpacked in the worker.

A ref that is an argument itself is replaced by its value before the task runs: an ArgRef stands for it in the packed
arguments, and the value travels beside them once it is there. Refs inside containers and objects stay refs. A large
argument is put into the store, as if the program had called `put`; once, if many calls get it (see large_arguments).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from skate._c import plain, refs
from skate._c.plain import register_plain_type, to_bytes
from skate._c.refs import ObjectEntry, ObjectRef
from skate.config import INLINE_BYTES
from skate.exceptions import SkateError
from skate.store.serialization import arguments_error

if TYPE_CHECKING:
    from skate.runtime.objects import Objects


class ArgRef:
    """Stands for the value of the `index`-th dependency of a task."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[type[ArgRef], tuple[int]]:
        return ArgRef, (self.index,)


register_plain_type(ArgRef)
register_plain_type(ObjectRef)

#: calls whose arguments are refs and nothing else are packed alike: how many -> packed, and the other way round
_ONLY_REFS: dict[int, bytes] = {}
_ONLY_REFS_COUNT: dict[bytes, int] = {}
MOST_ONLY_REFS = 16

Packed = tuple[bytes, list[ObjectEntry] | None, list[ObjectEntry], list[ObjectRef]]


class _StandIns:
    """The refs of one call that are arguments themselves, in the order of their ArgRefs.

    (A class and no closures: compiled, a closure that knows another one is a cycle, and would keep the refs.)
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.entries: dict[ObjectEntry, int] = {}
        #: refs made here, to be kept until their entries are pinned
        self.made: list[ObjectRef] = []
        #: refs inside what was pickled by itself
        self.nested: list[ObjectRef] = []

    def at_a_glance(self, value: Any) -> Any:
        """An ArgRef for a ref or a large value; else something plain that comes back as the value, or itself.

        Each value's own pickling code runs once.
        """
        if type(value) is ObjectRef:
            return self.for_ref(value)
        compact = plain.compact(value, INLINE_BYTES)
        if type(compact) is not plain.Serialized:
            return compact
        size = compact.total_bytes
        if size > INLINE_BYTES and size > self._objects.inline_argument_bytes:
            return self.for_large(value, compact)
        self.nested += compact.refs
        return plain.Parcel(compact)

    def for_ref(self, value: ObjectRef) -> ArgRef:
        """Stands for the value of a ref. Raises FormerSessionError."""
        refs.refuse_former([value])
        return ArgRef(self.entries.setdefault(value.entry, len(self.entries)))

    def for_large(self, value: Any, packed: plain.Serialized) -> ArgRef:
        """Stands for a large value, which goes to the store."""
        ref = self._objects.large_arguments.ref_for(value, packed)
        self.made.append(ref)
        return self.for_ref(ref)


def pack_arguments(objects: Objects, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """(packed arguments, entries that ArgRefs stand for, entries of refs inside, refs to keep until those are pinned).

    Raises SerializationError, ObjectStoreFullError.
    """
    stand_ins = _StandIns(objects)
    try:
        args = tuple([stand_ins.at_a_glance(value) for value in args])
        if not kwargs and _only_refs(args):
            return _ONLY_REFS[len(args)], list(stand_ins.entries), [], stand_ins.made
        if kwargs:
            kwargs = {key: stand_ins.at_a_glance(value) for key, value in kwargs.items()}
        packed = plain.serialize_plain((args, kwargs))
    except (MemoryError, SkateError):
        raise
    except Exception as error:
        arguments = {f"args[{i}]": value for i, value in enumerate(args)} | kwargs
        raise arguments_error(arguments, name, error) from error
    inside = packed.refs
    if stand_ins.nested:
        inside = list(dict.fromkeys([*inside, *stand_ins.nested]))
    # A ref inside may have been made by the pickling itself, and nobody else holds it.
    return (
        to_bytes(packed),
        list(stand_ins.entries) or None,
        [ref.entry for ref in inside],
        [*stand_ins.made, *inside],
    )


def inlined(dependencies: Iterable[ObjectEntry]) -> list[tuple[bytes, int, Any]]:
    """What travels beside packed arguments: of each value that an ArgRef stands for its id, its state, what it is."""
    return [(entry.id, entry.state, entry.value) for entry in dependencies]


def _only_refs(args: tuple[Any, ...]) -> bool:
    """Whether these are the ArgRefs 0, 1, ... in that order."""
    for at, arg in enumerate(args):
        if type(arg) is not ArgRef or arg.index != at:
            return False
    return 0 < len(args) <= MOST_ONLY_REFS


def unpack_arguments(packed: bytes, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments again, with the dependencies' values in the places of their ArgRefs."""
    if _ONLY_REFS_COUNT.get(packed) == len(values):
        return tuple(values), {}
    args, kwargs = plain.unpack(packed)
    if values:
        args = tuple([values[arg.index] if type(arg) is ArgRef else arg for arg in args])
        if kwargs:
            kwargs = {key: values[arg.index] if type(arg) is ArgRef else arg for key, arg in kwargs.items()}
    return args, kwargs


for _count in range(1, MOST_ONLY_REFS + 1):
    _ONLY_REFS[_count] = to_bytes(plain.serialize((tuple([ArgRef(at) for at in range(_count)]), {})))
    _ONLY_REFS_COUNT[_ONLY_REFS[_count]] = _count

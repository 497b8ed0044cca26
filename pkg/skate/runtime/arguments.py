"""The arguments of a call, packed for the way and unpacked in the worker.

A ref that is an argument itself is replaced by its value before the task runs: an ArgRef stands for it in the packed
arguments, and the value travels beside them once it is there. Refs inside containers and objects stay refs. An argument
that is large is put into the store, as if the program had called `put`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate._c import plain
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

Packed = tuple[bytes, list[ObjectEntry] | None, list[ObjectEntry], list[ObjectRef]]


def pack_arguments(objects: Objects, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """(packed arguments, entries that ArgRefs stand for, entries of the refs inside, refs to keep until those are pinned).

    Raises SerializationError, ObjectStoreFullError.
    """
    dependencies: dict[ObjectEntry, int] = {}

    def stand_in(value: Any) -> Any:
        if type(value) is not ObjectRef:
            return value
        return ArgRef(dependencies.setdefault(value.entry, len(dependencies)))

    for value in args:
        if type(value) is ObjectRef:
            args = tuple([stand_in(each) for each in args])
            break
    if kwargs:
        kwargs = {key: stand_in(value) for key, value in kwargs.items()}
    try:
        packed = plain.serialize((args, kwargs))
        made: list[ObjectRef] = []
        if packed.total_bytes > INLINE_BYTES:
            # Large arguments go to the store; small ones stay.
            def put_large(value: Any) -> Any:
                if type(value) is ArgRef or plain.serialize(value).total_bytes <= INLINE_BYTES:
                    return value
                ref = objects.put(value)
                made.append(ref)
                return stand_in(ref)

            args = tuple([put_large(value) for value in args])
            kwargs = {key: put_large(value) for key, value in kwargs.items()}
            packed = plain.serialize((args, kwargs))
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, SkateError):
            raise
        arguments = {f"args[{i}]": value for i, value in enumerate(args)} | kwargs
        raise arguments_error(arguments, name, error) from error
    nested = [ref.entry for ref in packed.refs]
    return to_bytes(packed), list(dependencies) or None, nested, made


def unpack_arguments(packed: bytes, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments again, with the dependencies' values in the places of their ArgRefs."""
    args, kwargs = plain.unpack(packed)
    if values:
        args = tuple([values[arg.index] if type(arg) is ArgRef else arg for arg in args])
        if kwargs:
            kwargs = {key: values[arg.index] if type(arg) is ArgRef else arg for key, arg in kwargs.items()}
    return args, kwargs

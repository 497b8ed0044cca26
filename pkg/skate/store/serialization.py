"""Values, functions and classes to bytes and back; errors that name the part that would not go.

The work is in `skate._c.plain` (see there for the layout of a block); this module adds what happens when it
fails, and what is particular to functions. It owns no state. Callers: the api for arguments, results and
`put`; workers for arguments and results; the store for what it holds.

What comes back:
* Arrays are read-only, views of the block they came in; a writable one is `array.copy()` away.
* A memoryview comes back as `bytes`, as it does in Ray. A bytearray comes back as a bytearray (Ray: bytes).
* bytes and bytearrays of 32 KB and more, passed by themselves, travel beside the pickle and are copied once
  a side.
* Arrays of numpy's subclasses, arrow tables, polars frames and torch tensors: as skate.reducers has it.
* All else is what cloudpickle makes of it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from skate._c import plain
from skate._c.plain import (
    Serialized,
    deserialize,
    layout,
    note_ref,
    pack_into,
    packed_size,
    register_plain_type,
    to_bytes,
    unpack,
)
from skate.exceptions import FormerSessionError, SerializationError
from skate.store.culprit import explain

__all__ = [
    "FUNCTION_LIMIT_BYTES",
    "FUNCTION_WARN_BYTES",
    "DumpedFunction",
    "Serialized",
    "arguments_error",
    "deserialize",
    "dump_function",
    "explain",
    "from_bytes",
    "layout",
    "load_function",
    "note_ref",
    "pack_into",
    "packed_size",
    "register_plain_type",
    "serialize",
    "to_bytes",
    "unpack",
]

logger = logging.getLogger("skate")

FUNCTION_LIMIT_BYTES = 100_000_000  # Ray's: 95 MiB
FUNCTION_WARN_BYTES = 10_000_000  # Ray's
DIGEST_BYTES = 16


def serialize(value: object, role: str = "the value", name: str = "value", function: str = "") -> Serialized:
    """Pickle `value`; see plain.Serialized for what comes out.

    `role` and `name` are for the error: the role says what the value is to the user ("argument 'x' of f()",
    "the result of f()"; `function` goes where it has braces), the name is what paths into it begin with ("x"). Raises
    SerializationError.
    """
    try:
        return plain.serialize(value)
    except (MemoryError, FormerSessionError):
        raise
    except Exception as error:
        raise _error(role.format(function), value, name, error) from error


def arguments_error(
    arguments: Mapping[str, object], function_name: str, error: Exception
) -> SerializationError:
    """The error to raise, `from error`, when a call's arguments failed to pickle together: says which."""
    for name, value in arguments.items():
        try:
            plain.serialize(value)
        except Exception as culprit:
            return _error(f"argument {name!r} of {function_name}()", value, name, culprit)
    return _error(f"the arguments of {function_name}()", dict(arguments), "arguments", error)


def _error(role: str, value: object, name: str, error: Exception) -> SerializationError:
    if isinstance(error, SerializationError):  # a nested serialize(), which knew more
        return SerializationError(f"could not serialize {role}: {error}")
    return SerializationError(f"could not serialize {role}: {explain(value, name)}")


def from_bytes(data: Any) -> Any:
    """The value of a message made by to_bytes(). Never an alias of memory that can change: `bytes` are
    viewed in place, anything else is copied first.

    Raises ValueError for a damaged message, else what unpickling raises.
    """
    return unpack(data if type(data) is bytes else bytes(data))


class DumpedFunction(NamedTuple):
    """A function or class as it travels, once to each worker that needs it."""

    data: bytes
    digest: bytes  #: of the data; what messages call it by
    refs: list[Any]  #: ObjectRefs in its closure, globals and defaults: its holder keeps them alive


def dump_function(function: Any) -> DumpedFunction:
    """A function or class by cloudpickle. Raises SerializationError if it will not pickle or is too large."""
    name = getattr(function, "__qualname__", repr(function))
    try:
        dumped = plain.dumps_inband(function)
    except (MemoryError, FormerSessionError):
        raise
    except Exception as error:
        raise _error(f"the {_kind(function)} {name}", function, name, error) from error
    _check_size(name, function, len(dumped.inband))
    return DumpedFunction(
        dumped.inband, blake2b(dumped.inband, digest_size=DIGEST_BYTES).digest(), dumped.refs
    )


def load_function(data: bytes) -> Any:
    """The function or class again. What unpickling raises gets a note that says what is likely missing."""
    try:
        return pickle.loads(data)
    except (ImportError, AttributeError) as error:
        error.add_note(
            "skate could not load a remote function here: a module that it refers to is missing or another "
            "version. Install it on every node, or ship it with runtime_env."
        )
        raise


def _check_size(name: str, function: object, size: int) -> None:
    advice = (
        "It probably captures a large object from its module or closure: put() that once and pass the ref "
        "as an argument, or load the object inside the function."
    )
    if size >= FUNCTION_LIMIT_BYTES:
        raise SerializationError(
            f"the {_kind(function)} {name} is too large to send: {size / 2**20:.0f} MiB pickled, the limit "
            f"is {FUNCTION_LIMIT_BYTES / 2**20:.0f} MiB. {advice}"
        )
    if size >= FUNCTION_WARN_BYTES:
        logger.warning(
            "The %s %s is large: %.0f MiB pickled. %s", _kind(function), name, size / 2**20, advice
        )


def _kind(function: object) -> str:
    return "class" if isinstance(function, type) else "function"

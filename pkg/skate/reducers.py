"""How values travel that pickle, cloudpickle or their own library would refuse, garble, or copy more than once.

Definitions of `__main__` and local ones, which cloudpickle sends by value: classes with slots keep them; a class that
was defined in this process stays as the program has made it meanwhile, whatever comes back; functions made by lru_cache
and singledispatch, cached properties and context variables are made again from what they were made of. (A cache is
empty, and a context variable has its default, in a process where it arrives.)

Values of libraries: their bytes travel as an array's do, out of band, and a part of a larger whole takes its own size.

State: which classes have arrived here, and the context variables by the word that they travel under. Callers:
skate._c.plain, in each pickle that is cloudpickle's; what a reducer returns is what a `__reduce__` does.
"""

from __future__ import annotations

import array
import functools
import importlib
import io
import os
import pickle
import sys
import warnings
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from types import FunctionType
from typing import Any, Final, NamedTuple

from skate import dependencies

#: Ray's variable: a tensor that `get` gives shares the store's memory, and must not be written to
ZERO_COPY_TENSORS: Final = "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"
#: a part of an arrow table whose buffers are larger than itself by more than this share is cut out of them
ARROW_SLACK: Final = 8

Reduced = tuple[Any, ...]

# --- definitions --------------------------------------------------------------------------------------------------

#: classes that were made here from a pickle; all others are the program's own
_arrived: weakref.WeakSet[type] = weakref.WeakSet()


def of_definition(definition: Any, reduced: Any) -> Any:
    """What `definition`, a class or function, is reduced to; `reduced` is cloudpickle's answer."""
    if not isinstance(reduced, tuple):  # by reference
        return reduced
    if isinstance(definition, type):
        return _of_class(definition, reduced)
    if "registry" in vars(definition) and "_clear_cache" in vars(definition):
        return _of_dispatcher(definition)
    return reduced


def _of_class(cls: type, reduced: Reduced) -> Reduced:
    if len(reduced) != 6:  # a built-in one
        return reduced
    module = _real_module(cls)
    if module is not None:
        return _of_module, (module, cls.__qualname__)
    make, arguments, state, _, _, fill = reduced
    slots = vars(cls).get("__slots__")
    if slots is not None and make is dependencies.cloud_skeleton() and NamedTuple not in arguments[2]:
        arguments, state = _with_slots(cls, slots, arguments, state)
    return _skeleton, (make, arguments), (fill, state), None, None, _fill_class


def _real_module(cls: type) -> str | None:
    """The module that has a class which says that it is another's, as pytest's outcomes say that they are built in."""
    functions = (each for each in vars(cls).values() if isinstance(each, FunctionType))
    names = dict.fromkeys(
        [base.__module__ for base in cls.__mro__[1:]] + [each.__module__ for each in functions]
    )
    for name in names:
        if name != "__main__" and getattr(sys.modules.get(name), cls.__qualname__, None) is cls:
            return name
    return None


def _of_module(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _with_slots(cls: type, slots: Any, arguments: Reduced, state: Any) -> tuple[Reduced, Any]:
    """Slots are part of the layout of a class's instances: they are given when it is made, and cannot be set later."""
    constructor, name, bases, given, *rest = arguments
    attributes = dict(state[0])
    attributes.pop("__slots__", None)
    for each in dependencies.own_slots(cls):
        attributes.pop(each, None)
    return (constructor, name, bases, {**given, "__slots__": slots}, *rest), (attributes, *state[1:])


def _skeleton(make: Callable[..., type], arguments: Reduced) -> type:
    known = dependencies.class_numbered(arguments[-2])
    cls = make(*arguments)
    if cls is not known:
        _arrived.add(cls)
    return cls


def _fill_class(cls: type, how: tuple[Callable[[type, Any], None], Any]) -> None:
    fill, state = how
    if cls in _arrived:
        fill(cls, state)


def _of_dispatcher(function: Any) -> Reduced:
    """A function of functools.singledispatch. Filled in later: its implementations may call it."""
    implementations = list(function.registry.items())
    own = {"registry", "dispatch", "register", "_clear_cache", "__wrapped__"}
    attributes = {name: value for name, value in vars(function).items() if name not in own}
    return _dispatcher, (function.__name__,), (implementations, attributes), None, None, _fill_dispatcher


def _dispatcher(name: str) -> Any:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}() has not arrived yet")

    unknown.__name__ = name
    return functools.singledispatch(unknown)


def _fill_dispatcher(function: Any, state: tuple[list[tuple[type, Any]], dict[str, Any]]) -> None:
    implementations, attributes = state
    for cls, implementation in implementations:
        function.register(cls, implementation)
    functools.update_wrapper(function, dict(implementations)[object], updated=())
    vars(function).update(attributes)


def _of_cached(function: Any) -> Any:
    """A function of functools.lru_cache or cache: with an empty cache."""
    if dependencies.is_importable(function) or not hasattr(function, "__wrapped__"):
        return function.__reduce__()
    parameters = function.cache_parameters()
    given = vars(function.__wrapped__) if hasattr(function.__wrapped__, "__dict__") else {}
    attributes = {
        name: value
        for name, value in vars(function).items()
        if name != "__wrapped__" and given.get(name) is not value
    }
    return _cached, (function.__wrapped__, parameters["maxsize"], parameters["typed"]), attributes or None


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _of_cached_property(prop: functools.cached_property[Any]) -> Reduced:
    return _cached_property, (prop.func, prop.attrname)


def _cached_property(function: Any, name: str | None) -> functools.cached_property[Any]:
    prop = functools.cached_property(function)
    prop.attrname = name
    return prop


def _of_method_dispatcher(method: functools.singledispatchmethod[Any]) -> Reduced:
    """(From Python 3.13 on it has a cache, of weak references.)"""
    return _method_dispatcher, (method.func, method.dispatcher)


def _method_dispatcher(function: Any, dispatcher: Any) -> functools.singledispatchmethod[Any]:
    method = functools.singledispatchmethod(function)
    method.dispatcher = dispatcher
    return method


#: a context variable is never freed by those that have one, as a rule: a module's
_variables: dict[str, ContextVar[Any]] = {}
_words: dict[ContextVar[Any], str] = {}


def _of_context_variable(variable: ContextVar[Any]) -> Reduced:
    word = _words.get(variable)
    if word is None:
        word = os.urandom(16).hex()
        word = _words.setdefault(variable, word)
        _variables[word] = variable
    try:
        default = (Context().run(variable.get),)
    except LookupError:
        default = ()
    return _context_variable, (word, variable.name, default)


def _context_variable(word: str, name: str, default: tuple[Any, ...]) -> ContextVar[Any]:
    variable = _variables.get(word)
    if variable is None:
        made: ContextVar[Any] = ContextVar(name, default=default[0]) if default else ContextVar(name)
        variable = _variables.setdefault(word, made)
        _words[variable] = word
    return variable


# --- arrays -------------------------------------------------------------------------------------------------------


def of_array(value: Any) -> Any:
    """A numpy array, of a subclass too, whose own pickle would copy it: dates, strided ones, and all of subclasses.

    Transposed arrays keep their strides; others that are not contiguous are copied.
    """
    import numpy as np

    kind = type(value)
    if kind is not np.ndarray:
        if kind is np.ma.MaskedArray:
            return _masked, (value.data, value.mask, value._fill_value, value.hardmask)
        if kind.__reduce__ is not np.ndarray.__reduce__ or kind.__reduce_ex__ is not np.ndarray.__reduce_ex__:
            return NotImplemented
    if value.dtype.hasobject or not value.dtype.itemsize:
        return NotImplemented
    if kind is np.ndarray and value.flags.forc and value.dtype.kind not in "mM":
        return NotImplemented
    plain = value.view(np.ndarray)
    axes = dense_axes(plain)
    if axes is None:
        plain = np.ascontiguousarray(plain)
    else:
        plain = plain.transpose(axes)
    return _array, (kind, plain.reshape(-1).view("u1"), plain.dtype, plain.shape, axes)


def dense_axes(value: Any) -> tuple[int, ...] | None:
    """The order of axes in which the array lies in memory without gaps; None where it does not."""
    axes = tuple(sorted(range(value.ndim), key=lambda axis: -value.strides[axis]))
    return axes if value.transpose(axes).flags.c_contiguous else None


def _array(kind: type, data: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> Any:
    import numpy as np

    made = np.ndarray.__new__(kind, shape, dtype, data)  # a view of `data`, and as read-only as that
    if axes is None or axes == tuple(range(len(axes))):
        return made
    return made.transpose(sorted(range(len(axes)), key=axes.__getitem__))


def _masked(data: Any, mask: Any, fill_value: Any, hard: bool) -> Any:
    import numpy as np

    made = np.ma.MaskedArray(data, mask=mask, copy=False, hard_mask=hard)
    made._fill_value = fill_value
    return made


def _of_standard_array(value: array.array[Any]) -> Reduced:
    return _standard_array, (value.typecode, pickle.PickleBuffer(value) if value else b"")


def _standard_array(typecode: str, data: Any) -> array.array[Any]:
    made: array.array[Any] = array.array(typecode)
    with memoryview(data) as view:
        made.frombytes(view)
    return made


# --- libraries ----------------------------------------------------------------------------------------------------


def _of_arrow(value: Any) -> Any:
    """A pyarrow table, batch or array: where it is a part of larger buffers, itself in a buffer of its own."""
    import pyarrow as pa

    nbytes = value.nbytes
    if value.get_total_buffer_size() <= nbytes + nbytes // ARROW_SLACK + 4096:
        return value.__reduce_ex__(5)  # its buffers are its own, and go out of band
    if isinstance(value, pa.Table | pa.RecordBatch):
        whole = value
    elif isinstance(value, pa.ChunkedArray):
        whole = pa.Table.from_arrays([value], [""])
    else:
        whole = pa.RecordBatch.from_arrays([value], [""])
    try:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write(whole)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # types that have no such form
        return value.__reduce_ex__(5)
    return _arrow, (sink.getvalue(), isinstance(whole, pa.RecordBatch), whole is value)


def _arrow(data: Any, is_batch: bool, is_whole: bool) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        whole = reader.read_next_batch() if is_batch else reader.read_all()
    return whole if is_whole else whole.column(0)


def _of_polars(value: Any) -> Any:
    import polars as pl

    frame = value if isinstance(value, pl.DataFrame) else value.to_frame()
    file = io.BytesIO()
    try:
        frame.write_ipc_stream(file)
    except pl.exceptions.PolarsError:  # a column of Python objects
        return value.__reduce_ex__(5)
    return _polars, (pickle.PickleBuffer(file.getbuffer()), frame is value)


def _polars(data: Any, is_frame: bool) -> Any:
    import polars as pl

    with memoryview(data) as view:
        frame = pl.read_ipc_stream(io.BytesIO(view))
    return frame if is_frame else frame.to_series()


def _of_tensor(tensor: Any) -> Any:
    """A dense tensor in main memory: its elements alone, however large its storage is; strides stay, if dense."""
    import torch

    dense = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
    if not dense or vars(tensor) or not tensor.numel():
        return tensor.__reduce_ex__(5)
    plain = tensor.detach().resolve_conj().resolve_neg()
    strides = plain.stride()
    axes = tuple(sorted(range(plain.dim()), key=lambda axis: -strides[axis]))
    plain = plain.permute(axes).contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy()
    return _tensor, (data, str(plain.dtype), tuple(plain.shape), axes, tensor.requires_grad)


def _tensor(data: Any, dtype: str, shape: tuple[int, ...], axes: tuple[int, ...], requires_grad: bool) -> Any:
    """The tensor: in memory of its own, or a view of `data` where the user wants that (ZERO_COPY_TENSORS)."""
    import torch

    if os.environ.get(ZERO_COPY_TENSORS, "").lower() in ("1", "true"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only
            flat = torch.from_numpy(data)
    else:
        flat = torch.empty(len(data), dtype=torch.uint8)
        flat.numpy()[:] = data
    made = flat.view(getattr(torch, dtype.removeprefix("torch."))).reshape(shape)
    made = made.permute(sorted(range(len(axes)), key=axes.__getitem__))
    return made.requires_grad_() if requires_grad else made


def _with_subclasses(cls: type) -> list[type]:
    return [cls, *(below for each in cls.__subclasses__() for below in _with_subclasses(each))]


def _arrow_table() -> dict[type, Any]:
    import pyarrow as pa

    roots = (pa.Table, pa.RecordBatch, pa.ChunkedArray, pa.Array)
    return {cls: _of_arrow for root in roots for cls in _with_subclasses(root)}


def _polars_table() -> dict[type, Any]:
    import polars as pl

    return {pl.DataFrame: _of_polars, pl.Series: _of_polars}


def _tensor_table() -> dict[type, Any]:
    import torch

    return {torch.Tensor: _of_tensor}


#: library -> what it has once it is imported whole, and its reducers
_LIBRARIES = {
    "pyarrow": ("ipc", _arrow_table),
    "polars": ("DataFrame", _polars_table),
    "torch": ("Tensor", _tensor_table),
}
#: those that have not been imported yet
waited_for = dict(_LIBRARIES)
_table: dict[type, Any] = {
    type(functools.lru_cache(lambda: None)): _of_cached,
    functools.cached_property: _of_cached_property,
    functools.singledispatchmethod: _of_method_dispatcher,
    ContextVar: _of_context_variable,
    array.array: _of_standard_array,
}


def table() -> dict[type, Any]:
    """Type -> reducer, of those types whose libraries have been imported: before that no value can be of them."""
    for name in [name for name in waited_for if name in sys.modules]:
        last, make = waited_for[name]
        if hasattr(sys.modules[name], last):  # another thread may be still importing it
            _table.update(make())
            del waited_for[name]
    return _table

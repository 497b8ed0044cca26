"""`put`, `get`, `wait`: what users call for values. No state."""

from __future__ import annotations

from typing import Any

from skate._c import refs as _refs
from skate._c.refs import ObjectRef
from skate.api.session import require_runtime
from skate.options import as_index
from skate.runtime import current
from skate.runtime.streams import ObjectRefGenerator


def put(value: Any) -> ObjectRef:
    """Stores a value and gives a ref to it. An array is copied once; the stored value never changes.

    Raises TypeError for an ObjectRef, SerializationError for what cannot be pickled, ObjectStoreFullError.
    """
    if type(value) is ObjectRef:
        raise TypeError(
            "put() got an ObjectRef. Pass the ref on as it is, or put a list with the ref in it: put([ref])."
        )
    return require_runtime().objects.put(value)


def get(refs: ObjectRef | list[ObjectRef], *, timeout: float | None = None) -> Any:
    """The value of a ref, or a list of values for a list of refs. Blocks until they are there. (Of an
    ObjectRefGenerator it gives that itself: its refs are had one by one.)

    Arrays come back read-only, without a copy: `array.copy()` is writable. Raises what the task raised, as soon as one
    of the refs has failed; GetTimeoutError (a TimeoutError) when `timeout` seconds are over, also for 0.
    """
    runtime = current.runtime or _runtime_for(refs)
    if type(refs) is ObjectRef:
        literal = refs.entry.literal
        if literal is not _refs.NOTHING and refs.entry.home is runtime:
            return literal
        _refs.refuse_former([refs])
        return runtime.objects.get([refs], timeout)[0]
    if type(refs) is ObjectRefGenerator:
        return refs
    wanted = _ref_list("get", refs)
    if not wanted:
        return []
    _refs.refuse_former(wanted)
    return runtime.objects.get(wanted, timeout)


def wait(
    refs: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """(ready, not ready), each in the order given; at most `num_returns` are ready. Blocks until as many are.

    With `timeout` (seconds; 0 only looks) fewer may be ready. A ref whose task failed is ready; an ObjectRefGenerator
    among the refs is ready when its next ref is. With `fetch_local`, a large value that lies on another node is ready
    once it is on this one. Raises TypeError for what is no list of refs, ValueError for refs
    given twice and for num_returns below 1 or above the number of refs.
    """
    if type(refs) is ObjectRef:
        raise TypeError("wait() takes a list of ObjectRefs, got a single one: write wait([ref])")
    try:
        wanted = _ref_list("wait", refs)
    except TypeError:
        if isinstance(refs, list) and any(type(ref) is ObjectRefGenerator for ref in refs):
            return _wait_with_generators(refs, num_returns, timeout, fetch_local)
        raise
    if timeout is not None and timeout < 0:
        raise ValueError(f"wait(): timeout must be 0 or more seconds, or None; got {timeout!r}")
    if not wanted:
        return [], []
    if not _refs.distinct(wanted):
        raise ValueError("wait() got the same ref more than once; each may stand in the list once")
    if type(num_returns) is not int:
        num_returns = as_index(num_returns) or 0
    if num_returns < 1:
        raise ValueError(f"wait(): num_returns must be 1 or more, got {num_returns!r}")
    if num_returns > len(wanted):
        raise ValueError(f"wait(): num_returns is {num_returns}, but there are {len(wanted)} refs")
    runtime = require_runtime()
    _refs.refuse_former(wanted)
    return runtime.objects.wait(wanted, num_returns, timeout, fetch_local)


def _wait_with_generators(
    items: list[Any], num_returns: int, timeout: float | None, fetch_local: bool
) -> Any:
    """As `wait`, where a generator is ready when its next ref is."""
    if len(set(map(id, items))) != len(items):
        raise ValueError("wait() got the same generator more than once; each may stand in the list once")
    refs = [item.peek() if type(item) is ObjectRefGenerator else item for item in items]
    ready, _ = wait(refs, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)
    chosen = set(ready)
    return (
        [item for item, ref in zip(items, refs, strict=True) if ref in chosen],
        [item for item, ref in zip(items, refs, strict=True) if ref not in chosen],
    )


def _runtime_for(refs: Any) -> Any:
    """Starts skate, unless these are refs of a session that has ended: then they are refused first."""
    for ref in refs if isinstance(refs, list) else [refs]:
        if type(ref) is ObjectRef:
            _refs.refuse_former([ref])
    return require_runtime()


def _ref_list(function: str, refs: Any) -> list[ObjectRef]:
    if not isinstance(refs, list):
        raise TypeError(
            f"{function}() takes an ObjectRef or a list of them, got {type(refs).__name__}: {refs!r:.100}"
        )
    wanted = refs if type(refs) is list else list(refs)  # the kernels take exact lists
    wrong = _refs.all_refs(wanted)
    if wrong >= 0:
        item = wanted[wrong]
        raise TypeError(
            f"{function}() takes ObjectRefs, but item {wrong} is of type {type(item).__name__}: {item!r:.100}"
        )
    return wanted

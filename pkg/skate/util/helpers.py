"""`as_completed` and `map_unordered`: results as they come. No state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from skate._c.refs import ObjectRef
from skate.api.objects import get, wait
from skate.options import as_index
from skate.util.checks import check_timeout
from skate.util.waiting import Arrivals

__all__ = ["as_completed", "map_unordered"]


def as_completed(
    refs: Iterable[ObjectRef],
    *,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
    fetch_local: bool = True,
    num_returns: None = None,
) -> Iterator[Any]:
    """Yields the values of refs as they come; with `yield_obj_refs`, the refs. What it costs does not grow with them.

    It blocks until `chunk_size` are there (as many as are left, at the end), and yields these in the order given;
    `chunk_size=1` yields each as soon as it is there. After `timeout` seconds fewer will do; no error comes of that.
    A task's exception is raised in its place and ends the iteration: with `yield_obj_refs` each can be caught. Raises
    TypeError for what is no ref, ValueError for a ref given twice and for a bad chunk_size or timeout, all at once.
    """
    _check("as_completed", chunk_size, timeout, num_returns)
    if type(refs) is ObjectRef:
        raise TypeError("as_completed() takes refs, got a single one: write as_completed([ref])")
    wanted = list(refs)
    wait(wanted, timeout=0, fetch_local=fetch_local)  # it knows what may stand in a list of refs
    return _as_completed(wanted, chunk_size, yield_obj_refs, timeout)


def _as_completed(
    wanted: list[ObjectRef], chunk_size: int, yield_obj_refs: bool, timeout: float | None
) -> Iterator[Any]:
    arrivals = Arrivals()
    for ref in wanted:
        arrivals.add(ref)
    wanted.clear()  # a value goes as soon as nobody else wants it
    while arrivals:
        for ref in arrivals.take(chunk_size, timeout):
            yield ref if yield_obj_refs else get(ref)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
    fetch_local: bool = True,
    num_returns: None = None,
) -> Iterator[Any]:
    """Runs `fn.remote(item)` for each item and yields the results as they come; with `yield_obj_refs`, the refs.

    At most `backpressure_size` calls are in flight (None: no limit): items are taken as results are, so there may be
    any number of them. `chunk_size`, `timeout` and exceptions are as in `as_completed`. `fn` is a remote function or a
    method of an actor. Nothing runs before the first result is asked for.
    """
    _check("map_unordered", chunk_size, timeout, num_returns)
    if not hasattr(fn, "remote"):
        raise TypeError(
            f"map_unordered() takes a remote function, got {fn!r:.100}. Decorate it with @skate.remote, or write "
            "map_unordered(skate.remote(function), items)."
        )
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(
            f"map_unordered(): backpressure_size must be 1 or more, or None; got {backpressure_size!r}"
        )
    limit = float("inf") if backpressure_size is None else backpressure_size
    return _map_unordered(fn, iter(items), limit, chunk_size, yield_obj_refs, timeout)


def _map_unordered(
    fn: Any, items: Iterator[Any], limit: float, chunk_size: int, yield_obj_refs: bool, timeout: float | None
) -> Iterator[Any]:
    arrivals = Arrivals()
    more = True
    while more or arrivals:
        while more and len(arrivals) < limit:
            try:
                item = next(items)
            except StopIteration:
                more = False
            else:
                arrivals.add(_one_ref(fn, fn.remote(item)))
        for ref in arrivals.take(chunk_size, timeout):
            yield ref if yield_obj_refs else get(ref)


def _one_ref(fn: Any, result: Any) -> ObjectRef:
    if type(result) is not ObjectRef:
        raise TypeError(
            f"map_unordered() needs one ObjectRef a call, but {fn!r} gave {result!r:.100}. "
            "With num_returns=n, return one tuple of n values instead."
        )
    return result


def _check(function: str, chunk_size: Any, timeout: float | None, num_returns: Any) -> None:
    if num_returns is not None:
        raise ValueError(f"{function}() has no num_returns: say chunk_size={num_returns!r} instead")
    if (as_index(chunk_size) or 0) < 1:
        raise ValueError(f"{function}(): chunk_size must be 1 or more, got {chunk_size!r}")
    check_timeout(function, timeout)

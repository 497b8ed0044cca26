"""No call leaves garbage behind: what it made goes when it is over, without the cyclic collector.

The kind of fault: a reference cycle somewhere on the way of a call (an exception whose traceback leads to a frame that
holds it, records that know each other, a closure that knows itself). It keeps values, refs and actors until the
collector runs, which in a program that has turned it off is never. Each function below makes calls of one kind;
afterwards the collector must find nothing, and all tables must be as they were, in this process and in those that ran
the calls.

(A class is a cycle by itself; cloudpickle makes one, for a moment, for each class that travels by value: none does.)
"""

import asyncio
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import pytest
import skate
from skate.exceptions import (
    GetTimeoutError,
    RayActorError,
    SerializationError,
    SkateError,
    TaskError,
    WorkerCrashedError,
)
from skate.runtime import current
from skate.util import ActorPool
from skate.util.executor import SkateExecutor
from skate.util.placement_group import placement_group, remove_placement_group
from skate.util.queue import Empty, Queue
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .rendezvous import Tally, eventually

LARGE = 300_000


def garbage() -> list[str]:
    """What the collector finds, by its type's name."""
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = [type(each).__qualname__ for each in gc.garbage]
    gc.garbage.clear()
    gc.collect()
    return found


def tables() -> list[int]:
    """How much this process's runtime keeps."""
    runtime = current.runtime
    kept = (
        runtime.references.entries,
        runtime.submission.tasks,
        runtime.objects.loops.awaiting(),
        runtime.objects.when_freed,
        runtime._queries,
        runtime.effects,
        runtime.actors.calls.lines,
    )
    return [len(each) for each in kept]


def state_of_worker() -> tuple[list[str], list[int]]:
    gc.freeze()  # the modules: the next look is quick
    return garbage(), tables()


@skate.remote
def probe(tally: Tally) -> tuple[list[str], list[int]]:
    tally.meet(2)
    return state_of_worker()


@skate.remote
def one(value: object = None) -> object:
    return value


@skate.remote
def large() -> np.ndarray:
    return np.zeros(LARGE)


@skate.remote
def slow() -> None:
    time.sleep(0.05)


@skate.remote(max_retries=0)
def fail(*_: object) -> None:
    raise LookupError("as asked")


@skate.remote(max_retries=0)
def slow_fail() -> None:
    time.sleep(0.05)
    raise LookupError("as asked")


@skate.remote(max_retries=0)
def fail_from_another() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        raise LookupError from error


@skate.remote(max_retries=0)
def nested(task: object) -> object:
    return skate.get(task.remote())


@skate.remote(max_retries=0)
def crash() -> None:
    os._exit(1)


@skate.remote(retry_exceptions=True, max_retries=1)
def retried() -> None:
    raise LookupError


@skate.remote
def with_refs() -> list:
    return [skate.put(1), skate.put(np.zeros(LARGE)), [skate.put([skate.put(2)])]]


@skate.remote
def inner(refs: list) -> object:
    return refs[0]


@skate.remote
def unsendable(make: Callable) -> object:
    return make()


@skate.remote(max_retries=0)
def stream(n: int, large: bool = False, end: Callable | None = None) -> Iterator[object]:
    for i in range(n):
        yield np.full(LARGE, i) if large else i
    if end is not None:
        end()


@skate.remote
def slow_stream() -> Iterator[None]:
    time.sleep(0.05)
    yield


@skate.remote(max_retries=0)
def stream_of_refs() -> Iterator[list]:
    yield [skate.put(1), skate.put(np.zeros(LARGE))]
    yield [skate.put(2)]


@skate.remote(max_retries=2, retry_exceptions=True)
def stream_that_ends_early(tally: Tally, how: Callable) -> Iterator[list]:
    for i in range(4):
        if i == 2 and tally.add() == 1:
            how()
        yield [np.full(LARGE, i), skate.put(i)]


def lookup_error() -> None:
    raise LookupError("as asked")


def exit_process() -> None:
    os._exit(1)


class Sync:
    def __init__(self, value: object = None) -> None:
        self.value = value

    def one(self, value: object = None) -> object:
        return value

    def fail(self) -> None:
        raise LookupError

    def nested(self) -> object:
        return skate.get(one.remote(1))

    def stream(self, n: int, end: Callable | None = None) -> Iterator[int]:
        yield from range(n)
        if end is not None:
            end()

    def slow(self) -> None:
        time.sleep(0.05)

    def pid(self) -> int:
        return os.getpid()

    def state(self) -> tuple[list[str], list[int]]:
        return state_of_worker()


class Async:
    async def one(self, value: object = None) -> object:
        return value

    async def fail(self) -> None:
        raise LookupError

    async def nested(self) -> object:
        return await one.remote(1)

    async def fail_nested(self) -> object:
        return await fail.remote()

    async def give_up(self) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow.remote(), 0.001)

    async def stream(self, n: int, end: Callable | None = None) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        if end is not None:
            end()

    def state(self) -> tuple[list[str], list[int]]:
        return state_of_worker()


class Broken:
    def __init__(self) -> None:
        raise LookupError

    def one(self) -> None: ...


Actor, AsyncActor, BrokenActor = skate.remote(Sync), skate.remote(Async), skate.remote(Broken)


def expect(kind: type[BaseException], ref: object, **how: float) -> None:
    with pytest.raises(kind):
        skate.get(ref, **how)


# ------------------------------------------------------------------------------------------------------- the kinds


def tasks(_: object) -> None:
    assert skate.get([one.remote(i) for i in range(3)]) == [0, 1, 2]
    skate.get(large.remote())
    skate.get(one.remote(np.zeros(LARGE)))
    skate.get(nested.remote(one))
    one.remote(1)
    one.options(num_returns=0).remote()


def dependencies(_: object) -> None:
    skate.get(one.remote(one.remote(large.remote())))
    expect(LookupError, one.remote(fail.remote()))
    expect(LookupError, one.remote(one.remote(fail.remote())))


def refs_in_values(_: object) -> None:
    number, array, box = skate.get(with_refs.remote())
    skate.get([number, array])
    skate.get(skate.get(box[0]))
    assert skate.get(skate.get(inner.remote([skate.put(1)]))) == 1
    skate.get(skate.put([skate.put(1)]))


def errors(_: object) -> None:
    failed = fail.remote()
    for _ in range(2):
        expect(LookupError, failed)
    expect(TaskError, [one.remote(), fail.remote()])
    expect(LookupError, fail_from_another.remote())
    expect(LookupError, nested.remote(fail))
    expect(LookupError, retried.remote())
    fail.remote()
    fail.options(num_returns=0).remote()


def crashes(_: object) -> None:
    expect(WorkerCrashedError, crash.remote())
    expect(WorkerCrashedError, nested.remote(crash))


def what_cannot_be_sent(_: object) -> None:
    expect(SerializationError, unsendable.remote(threading.Lock))
    expect(TypeError, unsendable.remote(lambda: (i for i in ())))
    for submit in (one.remote, skate.put):
        with pytest.raises(SerializationError):
            submit([threading.Lock()])


def misuse(actors: list) -> None:
    for call in (one.remote, actors[0].one.remote):
        with pytest.raises(TypeError):
            call(1, 2, 3)
    with pytest.raises(AttributeError):
        actors[0].nothing  # noqa: B018
    with pytest.raises(TypeError):
        skate.get(1)


def timeouts(_: object) -> None:
    for seconds in (0, 0.001):
        expect(GetTimeoutError, slow.remote(), timeout=seconds)
        skate.wait([slow.remote()], timeout=seconds)
    skate.wait([one.remote(), slow.remote()], num_returns=2)


def futures(_: object) -> None:
    for future in as_completed([one.remote(i).future() for i in range(3)]):
        future.result()
    large.remote().future().result()
    for ref in (fail.remote(), one.remote(fail.remote())):
        with pytest.raises(LookupError):
            ref.future().result()
    skate.wait([ref])
    error = ref.exception()
    assert isinstance(error, LookupError)


def awaits(_: object) -> None:
    async def main() -> None:
        await asyncio.gather(one.remote(), large.remote())
        with pytest.raises(LookupError):
            await fail.remote()
        await asyncio.gather(fail.remote(), one.remote(), return_exceptions=True)
        await asyncio.wait([one.remote(), fail.remote()])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow.remote(), 0.001)
        waiting = asyncio.ensure_future(asyncio.wait_for(slow.remote(), 10))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def streams(_: object) -> None:
    for n in (0, 3):
        skate.get(list(stream.remote(n, True)))
        skate.get(list(skate.get(stream.options(num_returns="dynamic").remote(n, True))))
    skate.get(stream.options(num_returns=3).remote(3, True))
    skate.get(stream.options(num_returns=2).remote(3, True))
    skate.wait([stream.remote(2), one.remote()])
    generator = stream.remote(1)
    skate.wait([generator.peek()])
    assert skate.get(generator) is generator
    for items in (stream_of_refs.remote(), skate.get(stream_of_refs.options(num_returns="dynamic").remote())):
        for item in items:
            skate.get(skate.get(item))


def streams_that_fail(_: object) -> None:
    for end, kind in ((lookup_error, LookupError), (exit_process, WorkerCrashedError)):
        for refs in (
            list(stream.remote(2, True, end)),
            list(skate.get(stream.options(num_returns="dynamic").remote(2, True, end))),
        ):
            skate.get(refs[:2])
            expect(kind, refs[2])
    *there, missing = stream.options(num_returns=3).remote(2, True, lookup_error)
    skate.get(there)
    expect(LookupError, missing)
    expect(ValueError, stream.options(num_returns=3).remote(1))
    expect(ValueError, next(one.options(num_returns="streaming").remote(1)))


def streams_that_are_dropped(_: object) -> None:
    for how in ({}, {"_generator_backpressure_num_objects": 2}):
        for large in (False, True):
            stream.options(**how).remote(100, large)
            generator = stream.options(**how).remote(100, large)
            next(generator)
            kept = next(generator)
            del generator
            skate.get(kept)
            generator = stream.options(**how).remote(1, large, exit_process)
            next(generator)
            del generator
    stream.options(num_returns="dynamic").remote(3, True)
    skate.get(stream.options(num_returns="dynamic").remote(3, True))


def streams_that_are_awaited(_: object) -> None:
    async def main() -> None:
        async for ref in stream.remote(3):
            await ref
        generator = stream.remote(100)
        await anext(generator)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(slow_stream.remote()), 0.001)

    asyncio.run(main())


def streams_that_are_tried_again(folder: Path) -> None:
    for number, how in enumerate((lookup_error, exit_process)):
        for returns in ("streaming", "dynamic", 4):
            tally = Tally(folder / f"{number}-{returns}")
            tally.path.unlink(missing_ok=True)
            refs = stream_that_ends_early.options(num_returns=returns).remote(tally, how)
            if returns == "dynamic":
                refs = skate.get(refs)
            for i, ref in enumerate(refs):
                array, inside = skate.get(ref)
                assert int(array[0]) == i
                if how is lookup_error or i >= 2:  # else its owner is the process that has died
                    assert skate.get(inside) == i


def actors_made(_: object) -> None:
    actor = Actor.remote([skate.put(1)])
    skate.get(actor.one.remote())
    skate.get(one.remote([actor]))
    Actor.remote()
    expect(RayActorError, BrokenActor.remote().one.remote())
    expect(RayActorError, Actor.remote(fail.remote()).one.remote())


def actors_named(_: object) -> None:
    actor = Actor.options(name="named").remote()
    skate.get(skate.get_actor("named").one.remote())
    for call in (Actor.options(name="named").remote, lambda: skate.get_actor("nobody")):
        with pytest.raises(ValueError):
            call()
    skate.kill(actor)


def actors_that_end(_: object) -> None:
    actor = Actor.remote()
    running = actor.slow.remote()
    skate.kill(actor)
    expect(RayActorError, running)
    expect(RayActorError, actor.one.remote())
    expect(RayActorError, actor.one.remote(slow_fail.remote()))  # before its argument has failed
    for options, outcome in (({}, RayActorError), ({"max_restarts": 1, "max_task_retries": 1}, None)):
        actor = Actor.options(**options).remote()
        os.kill(skate.get(actor.pid.remote()), signal.SIGKILL)
        if outcome is None:
            skate.get(actor.one.remote())
        else:
            expect(outcome, actor.slow.remote())
    expect(SkateError, Actor.remote().__ray_terminate__.remote())


def methods(actors: list) -> None:
    for actor in actors:
        skate.get([actor.one.remote(), actor.one.remote(large.remote()), actor.nested.remote()])
        expect(LookupError, actor.fail.remote())
        expect(LookupError, actor.one.remote(fail.remote()))
        skate.get(list(actor.stream.remote(3)))
        skate.get(actor.stream.options(num_returns=2).remote(3))
        skate.get(list(skate.get(actor.stream.options(num_returns="dynamic").remote(2))))
        next(actor.stream.remote(100))
        next(actor.stream.options(_generator_backpressure_num_objects=1).remote(100))
        *_, failed = actor.stream.remote(2, lookup_error)
        expect(LookupError, failed)
    expect(LookupError, actors[-1].fail_nested.remote())
    skate.get(actors[-1].give_up.remote())


def groups(_: object) -> None:
    group = placement_group([{"CPU": 1}])
    skate.get(group.ready())
    skate.get(one.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote())
    remove_placement_group(group)
    group = placement_group([{"CPU": 100}])
    group.wait(0.001)
    remove_placement_group(group)


def helpers(actors: list) -> None:
    queue = Queue()
    queue.put(1)
    queue.get()
    for how in ({"block": False}, {"timeout": 0.001}):
        with pytest.raises(Empty):
            queue.get(**how)
    queue.shutdown()
    pool = ActorPool(actors[:1])
    list(pool.map(lambda actor, value: actor.one.remote(value), [1, 2]))
    with pytest.raises(LookupError):
        list(pool.map(lambda actor, value: actor.fail.remote(), [1]))
    with SkateExecutor(max_workers=1) as executor:
        executor.submit(abs, -1).result()


def questions(_: object) -> None:
    context = skate.get_runtime_context()
    context.get_node_id()
    skate.nodes()
    skate.available_resources()


KINDS = (
    tasks, dependencies, refs_in_values, errors, crashes, what_cannot_be_sent, misuse, timeouts, futures, awaits,
    streams, streams_that_fail, streams_that_are_dropped, streams_that_are_awaited, streams_that_are_tried_again,
    actors_made, actors_named, actors_that_end, methods, groups, helpers, questions,
)  # fmt: skip


@pytest.fixture(scope="module")
def actors() -> Iterator[list]:
    """A sync, a threaded and an asyncio actor; the collector is off."""
    skate.init(num_cpus=2)
    made = [Actor.remote(), Actor.options(max_concurrency=2).remote(), AsyncActor.remote()]
    skate.get([actor.state.remote() for actor in made])
    gc.collect()
    gc.freeze()
    gc.disable()
    yield made
    gc.enable()
    gc.unfreeze()
    made.clear()
    skate.shutdown()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_is_left_for_the_collector(actors: list, kind: Callable, tmp_path: Path) -> None:
    given = tmp_path if kind is streams_that_are_tried_again else actors
    kind(given)  # the first of a kind makes what stays: pickles of functions, classes of errors, threads
    eventually(lambda: skate.available_resources().get("CPU") == 2)
    garbage()
    before = tables()
    kind(given)
    eventually(lambda: tables() == before)
    assert garbage() == []
    eventually(lambda: current.runtime.store.usage()["objects"] == 0)
    numbers = itertools.count()

    def all_is_over() -> bool:
        tally = Tally(tmp_path / f"probes {next(numbers)}")
        states = [*(probe.remote(tally) for _ in range(2)), *(actor.state.remote() for actor in actors)]
        found, kept = zip(*skate.get(states), strict=True)
        assert [each for some in found for each in some] == []
        return not any(sum(counts) for counts in kept)

    eventually(all_is_over)

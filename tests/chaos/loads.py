"""The loads: what programs do with skate, a class a kind. Each call's value is known before it is made."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
import skate
from skate.exceptions import SkateError
from skate.util.placement_group import placement_group, remove_placement_group
from skate.util.queue import Empty, Queue
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from chaos.load import GET_SECONDS, LOSSES, REMOVALS, Failure, Load

#: bytes of a value that goes to the store
LARGE: Final = 200_000


# ------------------------------------------------------------------------------------------------------------- tasks


@skate.remote
def work(seconds: float, number: int) -> int:
    time.sleep(seconds)
    return 3 * number + 1


@skate.remote(num_cpus=0.2)  # as much as there is in each bundle of a group
def tree(depth: int, width: int) -> int:
    """How many leaves there are, each of them a task."""
    if not depth:
        return 1
    children = [tree.options(max_retries=-1).remote(depth - 1, width) for _ in range(width)]
    return sum(skate.get(children, timeout=GET_SECONDS))


@skate.remote
def large(number: int) -> bytes:
    return bytes([number % 251]) * (LARGE + number % 1000)


@skate.remote
def length(data: bytes, number: int) -> int:
    if data.count(bytes([number % 251])) != len(data):
        raise AssertionError(f"{data[:20]!r} came, for {number}")
    return len(data)


@skate.remote
def wrong(text: str) -> None:
    raise ValueError(text)


class Tasks(Load):
    """Tasks with 0 to any number of retries, small and large, nested, in chains, and some that raise."""

    name = "tasks"

    def step(self) -> None:
        random = self.random
        kind = random.choice(
            [self.burst, self.burst, self.nested, self.chain, self.through_the_store, self.raising]
        )
        kind()

    def retries(self) -> dict[str, Any]:
        return {"max_retries": self.random.choice([0, 1, 3, -1, -1])}

    @staticmethod
    def losses_of(*options: dict[str, Any]) -> tuple[type[BaseException], ...]:
        """What may come of tasks with these options: nothing, if all may be tried again for ever."""
        return LOSSES if any(each["max_retries"] >= 0 for each in options) else ()

    def burst(self) -> None:
        seconds = self.random.choice([0, 0, 0.001, 0.01])
        options = self.retries()
        function = work.options(**options)
        numbers = range(self.random.choice([1, 10, 100]))
        refs = [function.remote(seconds, number) for number in numbers]
        for number, ref in zip(numbers, refs, strict=True):
            self.expect(ref, 3 * number + 1, self.losses_of(options))

    def nested(self) -> None:
        depth, width = self.random.choice([(1, 4), (2, 3), (3, 2)])
        options = self.retries()
        self.expect(tree.options(**options).remote(depth, width), width**depth, self.losses_of(options))

    def chain(self) -> None:
        value = number = self.random.randrange(100)
        ref: Any = number
        steps = [self.retries() for _ in range(self.random.randrange(1, 8))]
        for options in steps:
            ref, value = work.options(**options).remote(0.002, ref), 3 * value + 1
        self.expect(ref, value, self.losses_of(*steps))

    def through_the_store(self) -> None:
        number = self.random.randrange(1000)
        made = large.options(**self.retries()).remote(number)
        refs = [length.options(**self.retries()).remote(made, number) for _ in range(4)]
        del made
        for ref in refs:
            self.expect(ref, LARGE + number)

    def raising(self) -> None:
        text = f"no {self.random.random()}"
        self.fails(
            wrong.options(**self.retries()).remote(text),
            lambda error: isinstance(error, ValueError) and error.args[0].args == (text,),
        )


# ------------------------------------------------------------------------------------------------------------ actors


class Life:
    """Which process an actor lives in, and the last number that it was told."""

    def __init__(self, load: Any = None) -> None:
        self.name = f"{os.getpid()} {time.monotonic_ns()}"
        self.last = -1

    def note(self, number: int, seconds: float = 0.0) -> tuple[str, int, int]:
        last, self.last = self.last, number
        time.sleep(seconds)
        return self.name, number, last

    def size(self, data: bytes) -> int:
        return len(data)


class AsyncLife(Life):
    async def note(self, number: int, seconds: float = 0.0) -> tuple[str, int, int]:  # type: ignore[override]
        return super().note(number)


Counter = skate.remote(Life)
AsyncCounter = skate.remote(AsyncLife)


class Actors(Load):
    """Actors that restart, or do not: ordered, with threads, of asyncio, named; some are killed by the program."""

    name = "actors"

    def __init__(self, seed: int, store_bytes: int) -> None:
        super().__init__(seed, store_bytes)
        #: [handle, whether its calls run in order, numbers used, a handle that keeps it alive, what may come of calls]
        self.held: list[list[Any]] = []
        self.names = 0

    def step(self) -> None:
        random = self.random
        if len(self.held) < 3 or (len(self.held) < 6 and random.random() < 0.3):
            self.held.append(self.made())
        held = random.choice(self.held)
        handle, ordered, used, _, losses = held
        count = random.choice([1, 5, 50])
        seconds = random.choice([0, 0, 0.002])
        refs = [handle.note.remote(used + i, seconds) for i in range(count)]
        held[2] += count
        for i, ref in enumerate(refs):
            self.expect(ref, lambda found, number=used + i: self.in_order(found, number, ordered), losses)
        del refs, ref
        if random.random() < 0.3:
            self.expect(handle.size.remote(skate.put(bytes(LARGE))), LARGE, losses)
        if random.random() < 0.15:
            self.held.remove(held)
            if random.random() < 0.5:
                skate.kill(handle)

    def made(self) -> list[Any]:
        random = self.random
        kind = random.choice(["ordered", "ordered", "threads", "async", "named"])
        options: dict[str, Any] = {
            "max_restarts": random.choice([0, 2, -1, -1]),
            "max_task_retries": random.choice([0, 2, -1]),
        }
        if kind == "threads":
            options["max_concurrency"] = 4
        if kind == "named":
            self.names += 1
            options["name"] = f"counter {self.names}"
        lasts = options["max_restarts"] == options["max_task_retries"] == -1
        cls = AsyncCounter if kind == "async" else Counter
        load = skate.put(bytes(LARGE)) if random.random() < 0.3 else None
        handle = keeps = cls.options(**options).remote(load)
        if kind == "named":
            with suppress(ValueError):  # it was killed meanwhile, and does not restart
                handle = skate.get_actor(options["name"])
        return [handle, kind in ("ordered", "named"), 0, keeps, () if lasts else LOSSES]

    @staticmethod
    def in_order(found: Any, number: int, ordered: bool) -> bool:
        _life, told, last = found
        return told == number and (last < number or not ordered)

    def finish(self) -> None:
        self.held.clear()


# ----------------------------------------------------------------------------------------------------------- streams


@skate.remote
def count_up(first: int, count: int, seconds: float, large: bool) -> Any:
    for number in range(first, first + count):
        time.sleep(seconds)
        yield np.full(LARGE, number % 251, np.uint8) if large else number


def is_filled(byte: int, array: Any) -> bool:
    return len(array) == LARGE and bool((array == byte).all())


class Streams(Load):
    """Generators that are read to the end, half-way or not at all, and dropped; their values are kept for a while."""

    name = "streams"

    def __init__(self, seed: int, store_bytes: int) -> None:
        super().__init__(seed, store_bytes)
        self.half_read: list[Any] = []
        self.kept: list[tuple[Any, Any]] = []

    def step(self) -> None:
        random = self.random
        if random.random() < 0.15:
            self.gathered()
            return
        first, count, large = random.randrange(100), random.choice([1, 5, 30]), random.random() < 0.4
        options: dict[str, Any] = {"max_retries": random.choice([0, 3, -1, -1])}
        if random.random() < 0.5:
            options["_generator_backpressure_num_objects"] = random.choice([1, 3])
        if random.random() < 0.8:
            options["num_returns"] = "streaming"
        generator = count_up.options(**options).remote(first, count, random.choice([0, 0.002]), large)
        self.half_read.append([generator, first, first + count, large])
        for half_read in random.sample(self.half_read, min(len(self.half_read), random.randrange(3))):
            self.read_on(half_read)
        while len(self.half_read) > 5:
            self.half_read.pop(random.randrange(len(self.half_read)))
        while len(self.kept) > 20:
            ref, expected = self.kept.pop(random.randrange(len(self.kept)))
            self.expect(ref, expected)

    def read_on(self, half_read: list[Any]) -> None:
        """Takes some values, perhaps all there are."""
        generator, number, end, large = half_read
        for _ in range(self.random.choice([1, 3, 40])):
            ready, _ = skate.wait([generator], timeout=GET_SECONDS)
            if not ready:
                raise Failure(f"hangs: value {number} of a generator up to {end} does not come")
            try:
                ref = next(generator)
            except StopIteration:
                self.half_read.remove(half_read)
                # That it failed may not have been seen yet: the last ref that it gave is kept.
                if number != end and self.expect(generator.completed(), lambda _: True):
                    raise Failure(f"a generator ended before {number}, not {end}") from None
                return
            if number == end:  # what comes after all values can only be the error that ended it
                self.half_read.remove(half_read)
                self.fails(ref, lambda _: False)
                return
            expected: Any = number
            if large:
                expected = partial(is_filled, number % 251)
            if self.random.random() < 0.3:
                self.kept.append((ref, expected))
            elif not self.expect(ref, expected):
                # perhaps it was the error that ended the generator, perhaps a value that was lost with its node
                self.half_read.remove(half_read)
                return
            number = half_read[1] = number + 1

    def gathered(self) -> None:
        ref = count_up.options(num_returns="dynamic").remote(7, 4, 0, self.random.random() < 0.5)
        self.calls += 1
        inner = skate.get(ref, timeout=GET_SECONDS)
        self.check(len(inner), 4)
        for number, each in enumerate(inner, 7):
            self.expect(each, lambda value, number=number: np.all(value == number))

    def finish(self) -> None:
        self.half_read.clear()
        self.kept.clear()


# ---------------------------------------------------------------------------------------------------------- borrowed


class _Keeper:
    """Keeps boxes of refs for others, reads them, hands them on, and makes some of its own."""

    def __init__(self) -> None:
        self.boxes: dict[int, Any] = {}

    def keep(self, key: int, box: Any) -> int:
        self.boxes[key] = box
        return len(self.boxes)

    def read(self, key: int) -> Any:
        """None where it is not here (any more)."""
        return opened(self.boxes[key]) if key in self.boxes else None

    def hand_on(self, key: int, other: Any, drop: bool) -> bool:
        if key not in self.boxes:
            return False
        skate.get(other.keep.remote(key, [self.boxes[key]]), timeout=GET_SECONDS)
        if drop:
            self.boxes.pop(key, None)
        return True

    def give(self, key: int) -> Any:
        return self.boxes.get(key)

    def make(self, number: int, large: bool) -> Any:
        return {"made": [skate.put(filled(number, large))]}

    def drop(self, key: int) -> None:
        self.boxes.pop(key, None)


Keeper = skate.remote(_Keeper)


def filled(number: int, large: bool) -> Any:
    return np.full(LARGE, number % 251, np.uint8) if large else number % 251


def opened(box: Any) -> int:
    """The number in a box: in however many lists, tuples, dictionaries and refs it lies."""
    while True:
        if isinstance(box, dict):
            (box,) = box.values()
        elif isinstance(box, list | tuple):
            (box,) = box
        elif isinstance(box, skate.ObjectRef):
            box = skate.get(box, timeout=GET_SECONDS)
        elif isinstance(box, np.ndarray):
            if len(box) != LARGE or not (box == box[0]).all():
                raise AssertionError(f"{len(box)} elements, {box[:5]}")
            return int(box[0])
        else:
            return int(box)


@skate.remote
def open_box(box: Any) -> int:
    return opened(box)


@skate.remote
def make_box(number: int, large: bool) -> Any:
    """Refs of the worker's own, inside a value."""
    return [{"deep": (skate.put(filled(number, large)),)}]


@skate.remote
def pass_box(box: Any, further: int) -> Any:
    return skate.get(pass_box.remote(box, further - 1), timeout=GET_SECONDS) if further else box


class Borrowed(Load):
    """Refs in nested containers, kept by actors, handed on between them, made by them and by tasks."""

    name = "borrowed"

    def __init__(self, seed: int, store_bytes: int) -> None:
        super().__init__(seed, store_bytes)
        self.keepers = [self.keeper() for _ in range(3)]
        self.keys = 0

    def keeper(self) -> Any:
        retries = self.random.choice([0, -1])
        return Keeper.options(max_restarts=-1, max_task_retries=retries).remote()

    def step(self) -> None:
        random = self.random
        number, large = random.randrange(251), random.random() < 0.3
        key = self.keys = self.keys + 1
        if random.random() < 0.03:
            self.keepers[random.randrange(3)] = self.keeper()
        one, other = random.sample(self.keepers, 2)
        box = self.box(number, large)
        if random.random() < 0.3:
            self.expect(open_box.remote(pass_box.remote([box], random.randrange(3))), number)
        kept = one.keep.remote(key, [box])
        del box
        self.calls += 1
        skate.get(kept, timeout=GET_SECONDS)
        self.expect(one.read.remote(key), lambda found: found in (number, None))  # None: it has restarted
        if random.random() < 0.7:
            self.expect(
                one.hand_on.remote(key, other, random.random() < 0.5), lambda found: found in (True, False)
            )
            self.expect(other.read.remote(key), lambda found: found in (number, None))
            given = other.give.remote(key)
            if self.has(given):
                self.expect(open_box.remote([given]), number)
            del given
        for keeper in (one, other):
            keeper.drop.remote(key)

    def has(self, given: Any) -> bool:
        self.calls += 1
        return skate.get(given, timeout=GET_SECONDS) is not None

    def box(self, number: int, large: bool) -> Any:
        kind = self.random.randrange(5)
        if kind == 0:
            return [skate.put(filled(number, large))]
        if kind == 1:
            return {"a": (skate.put([skate.put(filled(number, large))]),)}
        if kind == 2:
            return make_box.remote(number, large)
        if kind == 3:
            return [self.random.choice(self.keepers).make.remote(number, large)]
        return skate.get(self.random.choice(self.keepers).make.remote(number, large), timeout=GET_SECONDS)

    def finish(self) -> None:
        self.keepers.clear()


# ------------------------------------------------------------------------------------------------------------ groups


class Groups(Load):
    """Placement groups that are made, used by tasks and actors, and removed while these run."""

    name = "groups"

    def step(self) -> None:
        random = self.random
        strategy = random.choice(["PACK", "SPREAD", "STRICT_PACK"])
        bundles = [{"CPU": random.choice([0.2, 0.5, 1])} for _ in range(random.randrange(1, 4))]
        if strategy == "STRICT_PACK":
            bundles = bundles[:1]
        group = placement_group(bundles, strategy=strategy)
        refs: list[tuple[Any, Any]] = []
        try:
            self.use(group, refs)
        finally:
            remove_placement_group(group)
        for ref, expected in refs:
            self.expect(ref, expected, LOSSES + REMOVALS)

    def use(self, group: Any, refs: list[tuple[Any, Any]]) -> None:
        """Has tasks and actors run in the group; `refs` gets what they are to give."""
        random = self.random
        if random.random() < 0.7:
            self.calls += 1
            if not group.wait(GET_SECONDS):
                raise Failure(f"hangs: {group} of {group.bundle_specs} is not placed")
        place = {
            "num_cpus": 0.2,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_capture_child_tasks=random.random() < 0.5
            ),
        }
        refs += [
            (work.options(**place).remote(random.choice([0, 0.01, 0.1]), i), 3 * i + 1)
            for i in range(random.choice([1, 8]))
        ]
        if random.random() < 0.4:
            refs.append((tree.options(**place).remote(1, 2), 2))
        if random.random() < 0.5:
            actor = Counter.options(**place, max_restarts=random.choice([0, -1])).remote()
            refs += [(actor.size.remote(b"four"), 4) for _ in range(3)]
            del actor
        if random.random() < 0.5:
            for ref, expected in refs[: len(refs) // 2]:
                self.expect(ref, expected, LOSSES + REMOVALS)
        elif random.random() < 0.5:
            time.sleep(random.uniform(0, 0.05))


# ------------------------------------------------------------------------------------------------------------- store


@skate.remote
def make_array(size: int, number: int) -> Any:
    return np.full(size, number, np.int64)


@skate.remote
def sum_of(array: Any) -> int:
    return int(array.sum())


class Arrays(Load):
    """Arrays, together twice the size of the store, made here and by tasks, and read here and by tasks."""

    name = "arrays"

    def __init__(self, seed: int, store_bytes: int) -> None:
        super().__init__(seed, store_bytes)
        self.size = store_bytes // 16 // 8
        self.held: deque[tuple[Any, int]] = deque()

    def step(self) -> None:
        random = self.random
        number = random.randrange(1 << 30)
        if random.random() < 0.5:
            ref = skate.put(np.full(self.size, number, np.int64))
        else:
            ref = make_array.options(max_retries=-1).remote(self.size, number)
        self.held.append((ref, number))
        if len(self.held) > 32:
            self.held.popleft()
        ref, number = random.choice(self.held)
        if random.random() < 0.6:
            self.expect(
                ref, lambda array: len(array) == self.size and array[0] == number and (array == number).all()
            )
        else:
            self.expect(sum_of.options(max_retries=-1).remote(ref), self.size * number)

    def finish(self) -> None:
        self.held.clear()


# ------------------------------------------------------------------------------------------------------------- queue


@skate.remote(max_retries=0)
def take(queue: Any, count: int) -> list[int]:
    """What it gets, until there is nothing for a moment."""
    taken = []
    try:
        while len(taken) < count:
            taken.append(queue.get(timeout=1))
    except Empty:
        pass
    return taken


class Queues(Load):
    """A queue: the driver puts numbers, it and tasks get them. Each comes once, and those that one gets in order."""

    name = "queue"

    def __init__(self, seed: int, store_bytes: int) -> None:
        super().__init__(seed, store_bytes)
        self.queue: Any = None

    def step(self) -> None:
        random = self.random
        if self.queue is None:
            self.queue = Queue(random.choice([0, 0, 50]))
            self.put = 0
            self.taken: set[int] = set()
            self.leaks = False
        try:
            self.round()
        except SkateError:
            self.queue = None
            raise

    def round(self) -> None:
        random, queue = self.random, self.queue
        first, count = self.put, random.choice([1, 5, 20])
        self.put += count
        takers = [take.remote(queue, count // 2)] if random.random() < 0.5 else []
        self.calls += count
        if random.random() < 0.5:
            queue.put_nowait_batch(range(first, first + count))
        else:
            for number in range(first, first + count):
                queue.put(number, timeout=GET_SECONDS)
        for taker in takers:
            if not self.expect(taker, self.are_new):
                self.leaks = True  # what it had taken is lost with it, and what it had asked for may be
        mine = []
        while len(mine) < count:
            self.calls += 1
            try:
                mine.append(
                    queue.get(timeout=1 if takers else GET_SECONDS)
                    if random.random() < 0.5
                    else queue.get_nowait()
                )
            except Empty:
                break
        self.check(mine, self.are_new)
        missing = set(range(self.put)) - self.taken
        if missing and not self.leaks and queue.empty():
            raise Failure(f"{sorted(missing)[:20]} were put, and come to nobody")

    def are_new(self, numbers: list[int]) -> bool:
        right = numbers == sorted(numbers) and not self.taken.intersection(numbers)
        self.taken |= set(numbers)
        return right

    def finish(self) -> None:
        self.queue = None


LOADS: Final = (Tasks, Actors, Streams, Borrowed, Groups, Arrays, Queues)

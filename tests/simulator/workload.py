"""The programs of simulated drivers: tasks, actors, groups and refs at random, and what each `get` must give.

Ordinary programs of skate, but that they sleep on the simulated clock and write down what they see in the world's
Ledger. What a program gets must be right, or one of LOSSES where something was killed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from random import Random
from typing import Any, Final

import skate
from skate.exceptions import (
    ActorError,
    GetTimeoutError,
    ObjectFreedError,
    ObjectLostError,
    ReferenceCountingAssertionError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from skate.runtime import current
from skate.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from skate.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from simulator.world import Failed, sleep, world

#: what may come of a call or object where processes and nodes are killed
LOSSES: Final = (WorkerCrashedError, ObjectLostError, ActorError, TaskPlacementGroupRemoved)
#: but never these: somebody still held the object
UNFOUNDED: Final = (ReferenceCountingAssertionError, ObjectFreedError)
#: bytes of a value that goes to the store of its node
LARGE: Final = 150_000


class Ledger:
    """What the programs of a world have seen."""

    def __init__(self, *, lossy: bool) -> None:
        #: something is killed in this world: calls may fail for that
        self.lossy = lossy
        #: the head comes back with what it knew: groups last until they are removed
        self.head_returns = False
        self.begun = 0
        self.ended = 0
        self.lost = 0
        #: actor -> the processes in which it has lived, the latest last
        self.lives: dict[bytes, list[Any]] = {}
        #: what was done where: node -> simulated seconds of work
        self.work: dict[bytes, float] = {}

    def born(self, actor: bytes, process: Any) -> None:
        """An actor's constructor runs: all its earlier lives must be over, or on nodes that count as dead."""
        earlier = self.lives.setdefault(actor, [])
        maker = process.node.cluster.nodes.get(actor[:4])
        for life in earlier:
            if life.alive and maker is not None and not maker.manager.cluster.roster.is_dead(life.node.id):
                # In a worker, where an exception would end as an error of its caller's.
                world().mishaps.append(f"actor {actor.hex()} lives in {life.id.hex()} and {process.id.hex()}")
        earlier.append(process)

    def check(self, condition: bool, text: str) -> None:
        if not condition:
            raise Failed(text)


def ledger() -> Ledger:
    return world().ledger  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------- tasks


@skate.remote
def work(seconds: float, value: Any) -> Any:
    """Takes a while, and gives the value back."""
    work_here(seconds)
    return value


def work_here(seconds: float) -> None:
    sleep(seconds)
    facts, book = current.facts, ledger()
    assert facts is not None
    book.work[facts.node] = book.work.get(facts.node, 0.0) + seconds


@skate.remote
def tree(depth: int, width: int, seconds: float) -> int:
    """How many leaves there are, each of them a task; owners of tasks are on many nodes."""
    if not depth:
        work_here(seconds)
        return 1
    return sum(skate.get([tree.remote(depth - 1, width, seconds) for _ in range(width)]))


@skate.remote
def large(number: int) -> bytes:
    return bytes([number % 251]) * (LARGE + number)


@skate.remote
def length(data: bytes) -> int:
    work_here(0.001)
    return len(data)


@skate.remote
def boxed(number: int) -> list[Any]:
    """A ref to an object of the worker's own, inside the value."""
    return [skate.put(number)]


@skate.remote
def opened(box: list[Any]) -> Any:
    work_here(0.002)
    return skate.get(box[0])


@skate.remote
def passed_on(box: list[Any], further: int) -> list[Any]:
    """The same ref, through the hands of `further` more tasks."""
    if not further:
        return box
    return skate.get(passed_on.remote(box, further - 1))  # type: ignore[no-any-return]


@skate.remote
def wrong(text: str) -> None:
    raise ValueError(text)


@skate.remote
class Counter:
    """Counts what it is told; knows which of its lives it is."""

    def __init__(self) -> None:
        process: Any = world().process
        ledger().born(process.executor.actor.id, process)
        self.seen: list[int] = []

    def add(self, number: int) -> int:
        work_here(0.003)
        self.seen.append(number)
        return len(self.seen)

    def order(self) -> list[int]:
        return self.seen


@skate.remote
class Keeper(Counter.__skate_class__):  # type: ignore[misc]
    """Keeps refs for others."""

    def __init__(self) -> None:
        super().__init__()
        self.box: list[Any] = []

    def keep(self, box: list[Any]) -> int:
        self.box += box
        return len(self.box)

    def values(self) -> list[Any]:
        return skate.get(self.box)  # type: ignore[no-any-return]

    def drop(self) -> None:
        self.box.clear()


# ---------------------------------------------------------------------------------------------------------- programs


class Program:
    """A driver's program: `steps` of random kinds, with pauses that make it last about so many simulated seconds."""

    def __init__(self, seed: int, book: Ledger, steps: int, seconds: float) -> None:
        self._random = Random(seed)
        self._book = book
        self._steps = steps
        self._pause = 3 * seconds / steps
        #: what was asked for and not got yet: (ref, what it must give)
        self._held: list[tuple[Any, Callable[[Any], bool]]] = []
        self._kinds = (
            (6, self._task),
            (3, self._burst),
            (3, self._tree),
            (3, self._chain),
            (2, self._large),
            (3, self._box),
            (2, self._pass_on),
            (1, self._error),
            (3, self._actor),
            (2, self._keeper),
            (2, self._group),
            (2, self._where),
            (3, self._wait),
            (5, self._collect),
        )

    def __call__(self) -> None:
        kinds = [kind for weight, kind in self._kinds for _ in range(weight)]
        for _ in range(self._steps):
            self._random.choice(kinds)()
            if self._random.random() < 0.6:
                sleep(self._random.uniform(0.0, self._pause))
        while self._held:
            self._collect()

    def _hold(self, ref: Any, expected: Any) -> None:
        self._held.append((ref, lambda value: value == expected))

    def _get(self, ref: Any, right: Callable[[Any], bool], timeout: float | None = None) -> bool:
        """Whether the value came. It must be right, or its loss must have a reason."""
        book = self._book
        book.begun += 1
        try:
            value = skate.get(ref, timeout=timeout)
        except GetTimeoutError:
            if timeout is None:
                raise
            return False
        except LOSSES as error:
            if not book.lossy or isinstance(error, UNFOUNDED):
                raise
            book.lost += 1
            return True
        finally:
            book.ended += 1
        book.check(right(value), f"{ref} gave {value!r:.200}")
        return True

    # ----------------------------------------------------------------------------------------------------- the steps

    def _seconds(self) -> float:
        return self._random.choice((0.0, 0.0005, 0.002, 0.02, 0.1, 0.4)) * self._random.random()

    def _task(self) -> None:
        number = self._random.randrange(1000)
        self._hold(work.remote(self._seconds(), number), number)

    def _burst(self) -> None:
        seconds = self._seconds() / 4
        for number in range(self._random.randrange(5, 40)):
            self._hold(work.remote(seconds, number), number)

    def _tree(self) -> None:
        depth, width = self._random.choice(((1, 5), (2, 3), (3, 2), (4, 1)))
        self._hold(tree.remote(depth, width, self._seconds() / 4), width**depth)

    def _chain(self) -> None:
        """Each takes the result of the one before."""
        ref, number = work.remote(self._seconds(), 7), 7
        for _ in range(self._random.randrange(1, 4)):
            ref = work.remote(self._seconds(), ref)
        self._hold(ref, number)

    def _large(self) -> None:
        number = self._random.randrange(1000)
        data = large.remote(number) if self._random.random() < 0.6 else skate.put(bytes(LARGE + number))
        for _ in range(self._random.randrange(1, 4)):
            self._hold(length.remote(data), LARGE + number)
        if self._random.random() < 0.5:
            self._held.append((data, lambda value: len(value) == LARGE + number))

    def _box(self) -> None:
        number = self._random.randrange(1000)
        # What a worker owns goes with it, and it goes without a fault, too: when it has become an actor, and that ends.
        of_worker = self._book.lossy and self._random.random() < 0.5
        box = boxed.remote(number) if of_worker else skate.put([skate.put(number)])
        self._hold(opened.remote(box), number)
        if self._random.random() < 0.5:
            self._held.append((box, self._opens_to(number)))

    def _opens_to(self, number: int) -> Callable[[Any], bool]:
        """The value is a list of one ref, which leads to the number."""

        def right(box: Any) -> bool:
            return self._get(box[0], lambda value: value == number)

        return right

    def _pass_on(self) -> None:
        number = self._random.randrange(1000)
        inner = work.remote(self._seconds(), number)
        self._held.append(
            (passed_on.remote([inner], self._random.randrange(4)), self._opens_to(number)),
        )

    def _error(self) -> None:
        try:
            skate.get(wrong.remote("on purpose"))
        except ValueError as error:
            self._book.check("on purpose" in str(error), f"another error: {error}")
        except LOSSES:
            self._book.check(self._book.lossy, "a call was lost, and nothing was killed")
        else:
            raise Failed("a task's exception has not arrived")

    def _actor(self) -> None:
        """Calls of one caller come in their order, in each life."""
        restarts = self._random.choice((0, 0, 2, -1))
        counter = Counter.options(
            max_restarts=restarts,
            max_task_retries=-1 if restarts else 0,
            num_cpus=self._random.choice((0, 0, 1)),
        ).remote()
        calls = self._random.randrange(1, 12)
        for number in range(calls):
            ref = counter.add.remote(number)
            if self._random.random() < 0.3:
                self._held.append((ref, lambda value: value >= 1))
        if self._random.random() < 0.15 and self._book.lossy:
            skate.kill(counter, no_restart=self._random.random() < 0.5)
        self._held.append((counter.order.remote(), lambda seen: seen == sorted(seen)))

    def _keeper(self) -> None:
        """An actor holds refs that nobody else does."""
        keeper = Keeper.options(num_cpus=0).remote()
        numbers = [self._random.randrange(1000) for _ in range(self._random.randrange(1, 4))]
        keeper.keep.remote([work.remote(self._seconds(), number) for number in numbers])
        self._hold(keeper.values.remote(), numbers)
        if self._random.random() < 0.5:
            keeper.drop.remote()

    def _group(self) -> None:
        """Tasks in a placement group, and its end: often while they run, which kills workers, and what they own."""
        bundles = [{"CPU": 1} for _ in range(self._random.randrange(1, 4))]
        group = placement_group(
            bundles, strategy=self._random.choice(("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"))
        )
        if self._get(group.ready(), lambda _: True, timeout=self._random.choice((0.5, 3.0))):
            chosen = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
            refs = [
                tree.options(scheduling_strategy=chosen).remote(self._random.randrange(2), 2, 0.01)
                for _ in range(self._random.randrange(4))
            ]
            for ref in refs:
                if self._random.random() < 0.7 or not self._book.lossy:
                    self._get(ref, lambda value: value in (1, 2))
            if self._book.head_returns:
                self._keep(group, len(bundles))
        remove_placement_group(group)

    def _keep(self, group: PlacementGroup, bundles: int) -> None:
        """Uses a group for a while, which outlives heads."""
        for _ in range(self._random.randrange(4)):
            sleep(self._random.uniform(0.0, 1.5))
            chosen = PlacementGroupSchedulingStrategy(group, self._random.randrange(-1, bundles))
            ref = work.options(scheduling_strategy=chosen).remote(self._seconds(), 7)
            try:
                skate.get(ref, timeout=5.0)
            except (GetTimeoutError, WorkerCrashedError):
                pass
            except TaskPlacementGroupRemoved as error:
                raise Failed(f"nobody has removed it: {error}") from None

    def _where(self) -> None:
        """A task that is to be somewhere."""
        number = self._random.randrange(1000)
        node = self._random.choice([node["NodeID"] for node in skate.nodes() if node["Alive"]])
        strategy: Any = self._random.choice(("SPREAD", NodeAffinitySchedulingStrategy(node, soft=True)))
        self._hold(work.options(scheduling_strategy=strategy).remote(self._seconds(), number), number)

    def _wait(self) -> None:
        """`wait` for some of what is held."""
        if not self._held:
            return
        some = self._random.sample(self._held, min(len(self._held), 10))
        refs = [ref for ref, _ in some]
        wanted = self._random.randrange(1, len(refs) + 1)
        ready, rest = skate.wait(refs, num_returns=wanted, timeout=self._random.choice((0.0, 0.2, 2.0)))
        self._book.check(len(ready) + len(rest) == len(refs), "wait has lost a ref")

    def _collect(self) -> None:
        """Gets some of what is held, and drops the refs; or drops them unread."""
        self._random.shuffle(self._held)
        for _ in range(min(len(self._held), self._random.randrange(1, 12))):
            ref, right = self._held.pop()
            if self._random.random() < 0.9:
                self._get(ref, right)


# --------------------------------------------------------------------------------------------- for perf.simulation

#: tasks that an owner has under way
WINDOW: Final = 32


@skate.remote
def piece(seconds: float) -> None:
    work_here(seconds)


@skate.remote
def shard(seed: int, tasks: int, mean: float) -> int:
    """So many tasks of its own, which take `mean` seconds on average, WINDOW of them at a time; how many there were."""
    random = Random(seed)
    under_way: list[Any] = []
    for _ in range(tasks):
        if len(under_way) >= WINDOW:
            _, under_way = skate.wait(under_way, num_returns=WINDOW // 2)
        under_way.append(piece.remote(random.expovariate(1 / mean)))
    skate.get(under_way)
    return tasks


def spread_work(seed: int, shards: int, tasks: int, mean: float) -> int:
    """A program: `tasks` tasks whose owners are `shards` tasks on as many nodes, some of which have more to do."""
    random = Random(seed)
    weights = [random.uniform(0.5, 1.5) for _ in range(shards)]
    # Where the rounded sums end, so that no shard gets what all others lost by rounding.
    ends = [round(tasks * upto / sum(weights)) for upto in accumulate(weights)]
    shares = [end - begin for begin, end in pairwise([0, *ends])]
    spread = shard.options(scheduling_strategy="SPREAD")
    return sum(skate.get([spread.remote(random.getrandbits(32), share, mean) for share in shares]))

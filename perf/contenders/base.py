"""What a row may ask of a contender.

An adapter says in `can` what it is able to do; a measurement says in `needs` what it asks for:

    tasks         task, get, get_all
    refs          handles as arguments of tasks, replaced by their values
    objects       put; get of the same handle again and again
    wait          Ray's wait
    nesting       inside(): tasks that start tasks and get them
    nested refs   inside().put, and handles inside lists
    actors        actor, actors, method
    async actors  actors whose methods are coroutines
    threads       actors with threads: actor(cls, threads=16)
    handles       actors' handles as arguments, and inside().call_methods
    queue         queue
    pool          pool
    futures       futures and awaitables of tasks' handles
    executor      executor: an executor of concurrent.futures' interface
    streams       stream
    groups        placement groups
    cluster       cluster: nodes that stand for machines
    parts         skate's own modules: what a call is made of
    session       start and stop, nothing else
    machine       none of these: the limits of the machine

Adapters give rows bound callables (`task` returns what submits), so that a timed loop runs the system's own
code and nothing of the adapter's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NoReturn, Protocol

Submit = Callable[..., Any]


class Inside(Protocol):
    """What code that runs in a task or an actor may do; travels there by pickle."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Submit and get."""

    def call_many(self, function: Callable[..., Any], count: int) -> None:
        """Submit `count` calls without arguments, then get them all."""

    def call_methods(self, actors: Sequence[Any], name: str, count: int, *args: Any) -> None:
        """Call that method of each of the actors `count` times, then get them all."""

    def put(self, value: Any) -> Any: ...

    def get(self, handle: Any) -> Any: ...


class Queue(Protocol):
    """What the queues have in common; those without batches put and get the items one by one."""

    def put(self, item: Any) -> None: ...

    def get(self) -> Any: ...

    def put_batch(self, items: list[Any]) -> None: ...

    def get_batch(self, count: int) -> list[Any]: ...

    def shutdown(self) -> None: ...


class Contender:
    """The base of all adapters: what is not overridden raises NotImplementedError, which skips the row."""

    name: str = ""
    #: The package whose import shows that it is installed.
    import_name: str = ""
    can: frozenset[str] = frozenset()
    #: Rivals run in `--rival-python`; skate and the machine's limits in the interpreter of the harness.
    is_rival: bool = True

    def version(self) -> str:
        """Import the system; its version. Raises what the import raises."""
        return str(getattr(importlib.import_module(self.import_name), "__version__", "?"))

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        """Begin a session; `store_bytes` is the size of its object store, where it has one."""
        self._lacks("sessions")

    def stop(self) -> None:
        """End the session; nothing happens if there is none."""

    def task(self, function: Callable[..., Any]) -> Submit:
        """What submits a call of `function` and returns a handle."""
        self._lacks("tasks")

    def get(self, handle: Any) -> Any:
        self._lacks("get")

    def get_all(self, handles: Sequence[Any]) -> list[Any]:
        self._lacks("get")

    def put(self, value: Any) -> Any:
        self._lacks("put")

    def wait(self, handles: Sequence[Any], *, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        """One that is ready, and the others."""
        self._lacks("wait")

    def inside(self) -> Inside:
        self._lacks("nesting")

    def actor(self, cls: type, threads: int = 1) -> Any:
        """An actor of the class that needs no CPU; with more than one thread, it runs so many calls at once."""
        self._lacks("actors")

    def actors(self, cls: type, count: int) -> list[Any]:
        """That many actors of one class, asked for one after the other, without waiting for any."""
        return [self.actor(cls) for _ in range(count)]

    def method(self, actor: Any, name: str) -> Submit:
        """What submits a call of the actor's method and returns a handle."""
        self._lacks("actors")

    def queue(self) -> Queue:
        """A queue that other processes may share."""
        self._lacks("queues")

    def pool(self, processes: int) -> Any:
        """What has multiprocessing.Pool's methods."""
        self._lacks("pools")

    def future(self, handle: Any) -> Future[Any]:
        """The concurrent.futures.Future of a task's handle."""
        self._lacks("futures")

    def awaitable(self, handle: Any) -> Any:
        """What a coroutine awaits for it."""
        self._lacks("futures")

    def executor(self) -> Executor:
        """One that runs in as many processes as there are CPUs. The row shuts it down."""
        self._lacks("executors")

    def stream(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterable[Any]]:
        """What submits a call of a generator function and returns handles of its items, as they come."""
        self._lacks("generators")

    def create_groups(self, bundles: list[dict[str, float]], count: int) -> list[Any]:
        """That many placement groups of these bundles, each ready."""
        self._lacks("placement groups")

    def remove_groups(self, groups: list[Any]) -> None:
        self._lacks("placement groups")

    def cluster(self, *, encrypted: bool = True, **head_node_args: Any) -> Any:
        """A `cluster_utils.Cluster` with its head, to which this process is connected.

        `encrypted`: what travels between its nodes, where the system can do that.
        """
        self._lacks("clusters")

    def _lacks(self, what: str) -> NoReturn:
        raise NotImplementedError(f"{self.name} has no {what}")

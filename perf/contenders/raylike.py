"""The adapter of every system with Ray's API: it is handed the module, so skate and Ray run the same code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import ModuleType
from typing import Any, ClassVar

from perf.contenders.base import Contender, Submit

_NEEDED = ("init", "shutdown", "remote", "get", "put", "wait")


class RayLike(Contender):
    #: arguments for a cluster whose nodes do not encrypt; Ray's never do
    not_encrypted: ClassVar[dict[str, Any]] = {}
    can = frozenset(
        {"session", "tasks", "refs", "objects", "wait", "nesting", "nested refs", "groups", "cluster"}
        | {"actors", "async actors", "threads", "handles", "queue", "pool", "streams", "futures"}
    )

    def __init__(self, name: str, *, is_rival: bool, import_name: str = "") -> None:
        self.name = name
        self.import_name = import_name or name
        self.is_rival = is_rival

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.import_name)

    def version(self) -> str:
        version = super().version()
        missing = [name for name in _NEEDED if not hasattr(self.module, name)]
        if missing:
            raise ImportError(f"{self.import_name} has no {', '.join(missing)}")
        return version

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        module = self.module
        module.init(
            num_cpus=num_cpus,
            object_store_memory=store_bytes,
            resources={"custom": 100},  # what Ray's own row on placement groups asks for
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        # The names a timed loop calls are the module's own functions, without a frame of ours between.
        self.get = self.get_all = module.get  # type: ignore[method-assign]
        self.put = module.put  # type: ignore[method-assign]

    def stop(self) -> None:
        self.module.shutdown()

    def task(self, function: Callable[..., Any]) -> Submit:
        return self.module.remote(function).remote

    def wait(self, handles: Sequence[Any], *, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        return self.module.wait(handles, fetch_local=fetch_local)

    def inside(self) -> RayLikeInside:
        return RayLikeInside(self.import_name)

    def actor(self, cls: type, threads: int = 1) -> Any:
        options = {"max_concurrency": threads} if threads > 1 else {}
        return self.module.remote(num_cpus=0, **options)(cls).remote()

    def actors(self, cls: type, count: int) -> list[Any]:
        remote = self.module.remote(num_cpus=0)(cls)  # decorated once, as a program would
        return [remote.remote() for _ in range(count)]

    def method(self, actor: Any, name: str) -> Submit:
        def submit(*args: Any) -> Any:  # looks the method up each time, as a program does
            return getattr(actor, name).remote(*args)

        return submit

    def queue(self) -> RayLikeQueue:
        return RayLikeQueue(self._util("queue").Queue())

    def pool(self, processes: int) -> Any:
        return self._util("multiprocessing").Pool(processes)

    def future(self, handle: Any) -> Future[Any]:
        return handle.future()  # type: ignore[no-any-return]

    def awaitable(self, handle: Any) -> Any:
        return handle

    def stream(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterable[Any]]:
        return self.module.remote(function).remote

    def create_groups(self, bundles: list[dict[str, float]], count: int) -> list[Any]:
        create = self._util_function("placement_group")
        groups = [create(bundles=bundles) for _ in range(count)]
        for group in groups:
            group.wait(timeout_seconds=30)
        return groups

    def remove_groups(self, groups: list[Any]) -> None:
        remove = self._util_function("remove_placement_group")
        for group in groups:
            remove(group)

    def cluster(self, *, encrypted: bool = True, **head_node_args: Any) -> Any:
        module = importlib.import_module(f"{self.import_name}.cluster_utils")
        how = {} if encrypted else self.not_encrypted
        cluster = module.Cluster(initialize_head=True, head_node_args=head_node_args, **how)
        cluster.connect()
        return cluster

    def _util(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{self.import_name}.util.{name}")
        except ImportError:
            self._lacks(f"util.{name}")

    def _util_function(self, name: str) -> Callable[..., Any]:
        try:
            function = getattr(importlib.import_module(f"{self.import_name}.util"), name)
        except (ImportError, AttributeError):
            self._lacks(f"util.{name}")
        if not callable(function):
            self._lacks(f"util.{name}")
        return function


class RayLikeQueue:
    """See base.Queue."""

    def __init__(self, queue: Any) -> None:
        self.put, self.get, self.shutdown = queue.put, queue.get, queue.shutdown
        self.put_batch, self.get_batch = queue.put_nowait_batch, queue.get_nowait_batch


class RayLikeInside:
    """See base.Inside. Holds the module's name only, and one decorated function a process."""

    def __init__(self, import_name: str) -> None:
        self.import_name = import_name

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        module = importlib.import_module(self.import_name)
        return module.get(module.remote(function).remote(*args))

    def call_many(self, function: Callable[..., Any], count: int) -> None:
        module = importlib.import_module(self.import_name)
        submit = _decorated(module, function)
        module.get([submit() for _ in range(count)])

    def call_methods(self, actors: Sequence[Any], name: str, count: int, *args: Any) -> None:
        module = importlib.import_module(self.import_name)
        module.get([getattr(actor, name).remote(*args) for actor in actors for _ in range(count)])

    def put(self, value: Any) -> Any:
        return importlib.import_module(self.import_name).put(value)

    def get(self, handle: Any) -> Any:
        return importlib.import_module(self.import_name).get(handle)


_submitters: dict[Callable[..., Any], Submit] = {}


def _decorated(module: ModuleType, function: Callable[..., Any]) -> Submit:
    """Decorated once a process, as a program's own module would."""
    if function not in _submitters:
        _submitters[function] = module.remote(function).remote
    return _submitters[function]

"""dask.distributed on this machine, one thread a worker process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from perf.contenders.base import Contender, Submit


class Dask(Contender):
    name = "dask"
    import_name = "distributed"
    can = frozenset({"session", "tasks", "refs", "objects", "nesting", "actors"})

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=num_cpus, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def task(self, function: Callable[..., Any]) -> Submit:
        return partial(self.client.submit, function, pure=False)

    def get(self, handle: Any) -> Any:
        return handle.result()

    def get_all(self, handles: Sequence[Any]) -> list[Any]:
        from distributed import Future

        if handles and isinstance(handles[0], Future):
            return self.client.gather(handles)
        return [handle.result() for handle in handles]  # an actor's futures are of another kind

    def put(self, value: Any) -> Any:
        return self.client.scatter(value, hash=False)

    def inside(self) -> DaskInside:
        return DaskInside()

    def actor(self, cls: type, threads: int = 1) -> Any:
        if threads > 1:
            self._lacks("actors with threads of their own")
        return self.client.submit(cls, actor=True, pure=False).result()

    def method(self, actor: Any, name: str) -> Submit:
        def submit(*args: Any) -> Any:
            return getattr(actor, name)(*args)

        return submit


class DaskInside:
    """See base.Inside; a task that waits for another has to leave the worker's thread pool."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        from distributed import worker_client

        with worker_client() as client:
            return client.submit(function, *args, pure=False).result()

    def call_many(self, function: Callable[..., Any], count: int) -> None:
        raise NotImplementedError("dask: tasks from actors are not measured")

    def call_methods(self, actors: Sequence[Any], name: str, count: int, *args: Any) -> None:
        raise NotImplementedError("dask: calls from actors are not measured")

    def put(self, value: Any) -> Any:
        raise NotImplementedError("dask: puts inside tasks are not measured")


CONTENDER = Dask()

"""multiprocessing, of the standard library: its Queue and its Pool."""

from __future__ import annotations

import multiprocessing
import platform
from typing import Any

from perf.contenders.base import Contender


class Multiprocessing(Contender):
    name = "multiprocessing"
    import_name = "multiprocessing"
    can = frozenset({"queue", "pool"})

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        """Nothing to start."""

    def queue(self) -> MultiprocessingQueue:
        return MultiprocessingQueue()

    def pool(self, processes: int) -> Any:
        return multiprocessing.Pool(processes)


class MultiprocessingQueue:
    """See base.Queue."""

    def __init__(self) -> None:
        self.queue = multiprocessing.Queue()
        self.put, self.get = self.queue.put, self.queue.get

    def put_batch(self, items: list[Any]) -> None:
        for item in items:
            self.put(item)

    def get_batch(self, count: int) -> list[Any]:
        return [self.get() for _ in range(count)]

    def shutdown(self) -> None:
        self.queue.close()
        self.queue.join_thread()


CONTENDER = Multiprocessing()

"""concurrent.futures.ProcessPoolExecutor, of the standard library."""

from __future__ import annotations

import platform
from concurrent.futures import Executor

from perf.contenders.futures import Pool


class ProcessPool(Pool):
    name = "executor"
    can = Pool.can | {"executor"}
    import_name = "concurrent.futures"

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def executor(self) -> Executor:
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(self.pool._max_workers)  # type: ignore[attr-defined]

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(num_cpus)


CONTENDER = ProcessPool()

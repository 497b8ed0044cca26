"""concurrent.futures.ProcessPoolExecutor, of the standard library."""

from __future__ import annotations

import platform

from perf.contenders.futures import Pool


class ProcessPool(Pool):
    name = "executor"
    import_name = "concurrent.futures"

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(num_cpus)


CONTENDER = ProcessPool()

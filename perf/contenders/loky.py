"""loky, joblib's pool."""

from __future__ import annotations

from perf.contenders.futures import Pool


class Loky(Pool):
    name = "loky"
    import_name = "loky"

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        import loky

        self.pool = loky.ProcessPoolExecutor(num_cpus)


CONTENDER = Loky()

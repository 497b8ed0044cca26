"""`runtime_env={"env_vars": …}`: what is read only when a process begins, by Python, the C library, numpy, holds.

And the processes that this takes: workers of one environment serve it again, and those that nobody needs end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import skate
from skate.exceptions import WorkerCrashedError

from .rendezvous import eventually
from .test_env_vars import Reader, having, read, run

THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS"]


class TestWhatIsReadAtTheStart:
    """By Python, the C library, numpy: whether a task or an actor has them, or the whole program."""

    VARIABLES: ClassVar[dict[str, str]] = {
        "PYTHONHASHSEED": "7",
        "PYTHONWARNINGS": "error::ImportWarning",
        "PYTHONOPTIMIZE": "2",
        "TZ": "Asia/Tokyo",
        **dict(zip(THREADS, "3456", strict=True)),
    }

    @staticmethod
    def seen() -> Any:
        import time_machine_of_the_test  # type: ignore[import-not-found]

        return {
            "hash": hash("skate"),
            "optimize": sys.flags.optimize,
            "warns": any(each[0] == "error" and each[2] is ImportWarning for each in warnings.filters),
            "zone": time.strftime("%z", time.localtime(0)),
            "module": time_machine_of_the_test.NAME,
            "threads": [os.environ.get(name) for name in THREADS],
            "blas": blas_threads(),
        }

    @pytest.fixture
    def variables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        for name in THREADS:
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "time_machine_of_the_test.py").write_text("NAME = 'found'")
        return self.VARIABLES | {"PYTHONPATH": f"{tmp_path}:${{PYTHONPATH}}"}

    @pytest.fixture
    def right(self) -> dict[str, Any]:
        hashed = subprocess.run(
            [sys.executable, "-c", "print(hash('skate'))"],
            env=os.environ | self.VARIABLES,
            capture_output=True,
            check=True,
        )
        return {
            "hash": int(hashed.stdout), "optimize": 2, "warns": True, "zone": "+0900", "module": "found",
            "threads": ["3", "4", "5", "6"], "blas": {4},
        }  # fmt: skip

    def test_in_a_task_and_in_an_actor(
        self, skate_start: Any, variables: dict[str, str], right: dict[str, Any]
    ) -> None:
        skate_start(num_cpus=2)
        task = run.options(**having(**variables)).remote(self.seen)
        actor = Reader.options(**having(**variables)).remote().run.remote(self.seen)
        assert skate.get([task, actor], timeout=40) == [right, right]
        assert skate.get(run.remote(lambda: sys.flags.optimize)) == sys.flags.optimize

    def test_in_a_program(self, skate_start: Any, variables: dict[str, str], right: dict[str, Any]) -> None:
        skate_start(num_cpus=2, runtime_env={"env_vars": variables})
        assert skate.get(run.remote(self.seen), timeout=40) == right
        own = skate.get(read.options(**having(TZ="UTC")).remote("TZ", "PYTHONHASHSEED"), timeout=40)
        assert own == ["UTC", "7"]


def blas_functions(name: str) -> list[Any]:
    """Those of the OpenBLAS libraries in this process."""
    import numpy  # noqa: F401

    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "openblas" in line}
    symbols = (name, f"scipy_{name}64_", f"{name}64_", f"scipy_{name}")
    libraries = [ctypes.CDLL(path) for path in paths]
    return [next(getattr(each, symbol) for symbol in symbols if hasattr(each, symbol)) for each in libraries]


def blas_threads() -> set[int]:
    return {function() for function in blas_functions("openblas_get_num_threads")}


class TestThreads:
    """Libraries that an earlier task of the worker has imported have as many threads as the task has CPUs."""

    @staticmethod
    def seen() -> Any:
        import scipy.linalg  # noqa: F401  (an OpenBLAS of its own)

        fake = sys.modules.setdefault("torch", FakeTorch("torch"))
        return os.getpid(), os.environ["OMP_NUM_THREADS"], blas_threads(), fake.threads

    def test_follow_the_task_that_runs(self, skate_start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in THREADS:
            monkeypatch.delenv(name, raising=False)
        skate_start(num_cpus=3)
        pids = set()
        skate.get(run.options(num_cpus=1).remote(self.seen))
        for num_cpus in (3, 1, 2, 0.5):
            pid, omp, blas, torch = skate.get(run.options(num_cpus=num_cpus).remote(self.seen))
            pids.add(pid)
            threads = max(1, int(num_cpus))
            assert (omp, blas) == (str(threads), {threads})
            assert torch in (threads, None), "it was told, if it had been imported"
        assert len(pids) < 4, "one of them ran several"

    def test_also_in_the_threads_of_an_actor(self, skate_start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some libraries keep a number for each thread."""
        for name in THREADS:
            monkeypatch.delenv(name, raising=False)
        skate_start(num_cpus=2)
        pid, *_ = skate.get(run.options(num_cpus=1).remote(self.seen))

        @skate.remote(num_cpus=2, max_concurrency=2)
        class Threaded:
            def told(self) -> Any:
                torch = sys.modules.get("torch")
                return os.getpid(), torch and torch.told.get(threading.get_ident())

        own, told = skate.get(Threaded.remote().told.remote())
        assert told == (2 if own == pid else None)

    def test_unless_the_user_says_how_many(self, skate_start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in THREADS:
            monkeypatch.delenv(name, raising=False)
        skate_start(num_cpus=3, runtime_env={"env_vars": {"OPENBLAS_NUM_THREADS": "4"}})
        for num_cpus in (1, 3):
            _, omp, blas, _ = skate.get(run.options(num_cpus=num_cpus).remote(self.seen), timeout=20)
            assert omp == str(num_cpus)
            assert blas <= {4, min(4, os.cpu_count() or 1)}, "a library that is imported later takes no more"


class FakeTorch(ModuleType):
    threads: int | None = None

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.told: dict[int, int] = {}

    def set_num_threads(self, threads: int) -> None:
        self.threads = self.told[threading.get_ident()] = threads


class TestWorkers:
    def test_serve_their_environment_again_and_those_that_are_not_needed_end(self, skate_start: Any) -> None:
        """However many environments there have been."""
        skate_start(num_cpus=1)
        again = {skate.get(run.options(**having(A="1")).remote(os.getpid), timeout=20) for _ in range(3)}
        assert len(again) == 1
        pids = {
            skate.get(run.options(**having(A=str(number))).remote(os.getpid), timeout=20)
            for number in range(2, 5)
        }
        assert len(pids | again) == 4
        assert skate.get(run.remote(os.getpid)) not in pids | again
        eventually(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in pids | again) <= 1)

    def test_an_environment_in_which_python_cannot_begin(self, skate_start: Any) -> None:
        skate_start(num_cpus=1)
        for _ in range(2):
            with pytest.raises(
                WorkerCrashedError, match=r"(?s)interpreter for these env_vars has ended.*encodings"
            ):
                skate.get(read.options(**having(PYTHONHOME="/nowhere")).remote("A"), timeout=30)
        assert skate.get(read.remote("PYTHONHOME")) == [None]
        assert skate.get(read.options(**having(A="1")).remote("A"), timeout=20) == ["1"]

    def test_the_process_that_they_are_forked_from_may_be_killed(
        self, skate_start: Any, tmp_path: Path
    ) -> None:
        """Its workers die with it: calls are tried again, and others begin."""
        skate_start(num_cpus=2)
        mark = tmp_path / "mark"

        def wait() -> str:
            if not mark.exists():
                mark.touch()
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            return "tried again"

        assert skate.get(run.options(**having(A="1")).remote(wait), timeout=40) == "tried again"
        assert skate.get(read.options(**having(A="1")).remote("A"), timeout=20) == ["1"]
        assert skate.get(read.remote("A")) == [None]

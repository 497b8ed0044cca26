"""How many threads the libraries in a worker may use: as many as the CPUs of the lease that it serves.

State: the number that was told last, and what was found of libraries. Those that are imported later read
OMP_NUM_THREADS; those that an earlier task has imported (BLAS, OpenMP, torch, numba, …) are told. What the user has
said with a variable of a library's own, or with OMP_NUM_THREADS, holds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

log = logging.getLogger("skate")

OMP: Final = "OMP_NUM_THREADS"


class _Library(NamedTuple):
    """A shared library: what its file's name contains, what sets its number of threads, which variables say it."""

    words: tuple[str, ...]
    setter: str
    variables: tuple[str, ...]


_LIBRARIES: Final = (
    _Library(("openblas",), "openblas_set_num_threads", ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", OMP)),
    _Library(("mkl_rt",), "MKL_Set_Num_Threads", ("MKL_NUM_THREADS", OMP)),
    _Library(("libblis",), "bli_thread_set_num_threads", ("BLIS_NUM_THREADS", OMP)),
    _Library(("libgomp", "libomp", "libiomp"), "omp_set_num_threads", (OMP,)),
)

#: module -> (sets its number of threads, which variables say it)
_MODULES: Final[dict[str, tuple[Callable[[Any, int], Any], tuple[str, ...]]]] = {
    "torch": (lambda torch, n: torch.set_num_threads(n), (OMP,)),
    "numba": (
        lambda numba, n: numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS)),
        ("NUMBA_NUM_THREADS",),
    ),
    "numexpr": (
        lambda numexpr, n: numexpr.set_num_threads(min(n, numexpr.MAX_THREADS)),
        ("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", OMP),
    ),
}

_VARIABLES: Final = {name for library in _LIBRARIES for name in library.variables} | {
    name for _, names in _MODULES.values() for name in names
}

#: (modules there were then, [(sets the number, which variables say it)])
_found: tuple[int, list[tuple[Callable[[int], Any], tuple[str, ...]]]] = (-1, [])
#: variable -> threads that the user has said with it; None: this process is no worker
_said: dict[str, int] | None = None
_told = 0


def begin() -> None:
    """From here on what the environment says is what the user has said."""
    global _said
    _said = {name: number for name in _VARIABLES if (number := _number(os.environ.get(name, "")))}


def limit(threads: int) -> None:
    """Has all libraries of this process use so many threads, unless the user has said how many."""
    global _told
    if threads == _told or _said is None:
        return
    _told = threads
    if OMP not in _said:
        os.environ[OMP] = str(threads)
    _tell(_said, threads)


def limit_here() -> None:
    """As `limit` said last, in a thread that has begun since: some libraries keep a number for each thread."""
    if _told and _said is not None:
        _tell(_said, _told)


def _tell(said: dict[str, int], threads: int) -> None:
    for setter, variables in find():
        setter(next((said[name] for name in variables if name in said), threads))
    for name, (tell, variables) in _MODULES.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                tell(module, next((said[name] for name in variables if name in said), threads))
            except Exception:  # a module of that name that is another, or is being imported just now
                log.warning("%s could not be told to use %d threads", name, threads, exc_info=True)


def find() -> list[tuple[Callable[[int], Any], tuple[str, ...]]]:
    """What sets the number of threads of each library that is loaded.

    Looked for anew where modules have come since: the zygote does, and its children need not.
    """
    global _found
    if len(sys.modules) != _found[0]:
        _found = len(sys.modules), list(_setters())
    return _found[1]


def _setters() -> Any:
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    for path in sorted(paths):
        name = os.path.basename(path).lower()
        for library in _LIBRARIES:
            if any(word in name for word in library.words):
                loaded = ctypes.CDLL(path)
                setter = library.setter
                for symbol in (setter, f"scipy_{setter}", f"scipy_{setter}64_", f"{setter}64_"):
                    if hasattr(loaded, symbol):
                        yield getattr(loaded, symbol), library.variables
                        break


def _number(text: str) -> int:
    """Threads that a variable says ("4", or "4,2" for those and those inside them); 0: none."""
    first = text.split(",")[0].strip()
    return int(first) if first.isdigit() else 0

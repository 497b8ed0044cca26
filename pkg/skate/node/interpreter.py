"""How another interpreter is started: its flags, where it finds modules, its variables. No state."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import Final

#: variables that make a BLAS start with one thread, so that a zygote stays single-threaded
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

_REFERENCE = re.compile(r"\$\{([^{}]+)\}")


def flags() -> list[str]:
    """Those with which this interpreter was started: what of the environment it heeds, where it finds modules. Without
    -W, which is for the program's own warnings."""
    found: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing
    return [flag for flag in found if not flag.startswith("-W")]


def boot(module: str, path: Iterable[str], *descriptors: int) -> list[str]:
    """Arguments that have an interpreter call `main(*descriptors)` of a module, with that path to find modules by.

    The first module that is not built in comes from there. (-P: Python 3.13.0 cannot
    import `socket` without it where the working directory is gone.)
    """
    end = 1 + len(descriptors)
    line = f"import sys; sys.path[:] = sys.argv[{end}:]; from {module} import main; main(*map(int, sys.argv[1:{end}]))"
    return [*dict.fromkeys(["-P", *flags()]), "-c", line, *map(str, descriptors), *path]


def expanded(variables: Iterable[tuple[str, str]], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, with what `environ`, or one before it, has under NAME in place of each ${NAME}."""
    seen, own = dict(environ), {}
    for name, value in variables:
        own[name] = seen[name] = _REFERENCE.sub(lambda found: seen.get(found[1], ""), value)
    return own

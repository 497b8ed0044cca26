"""Builds the extensions; everything else about the package is in pyproject.toml.

SKATE_DEBUG=1     bounds checks everywhere, line tracing, annotated HTML beside each .pyx
SKATE_SANITIZE=1  address and undefined-behaviour sanitizers in the kernels
SKATE_FAULTS=1    fault points inside the arena's allocator (the crash tests' build)
SKATE_PURE=1      leaves the modules of COMPILED as Python; so do DEBUG, SANITIZE and builds in place
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("SKATE_DEBUG") == "1"
SANITIZE = os.environ.get("SKATE_SANITIZE") == "1"
FAULTS = os.environ.get("SKATE_FAULTS") == "1"

#: module under skate._c -> libraries it links
EXTENSIONS = {
    "alarm": [],
    "arena": ["rt", "pthread"],
    "clock": [],
    "resources": [],
    "frames": [],
    "lanes": [],
    "refs": [],
    "plain": [],
    "steps": [],
    "threads": ["pthread"],
}

#: Python modules on the way of a call, compiled as they stand, with the types that the .pxd beside a module tells: that
#: takes two fifths off a call's CPU. A build in place leaves them alone, so that an edit counts at once.
COMPILED = [
    "skate.api.actor_handle",
    "skate.api.remote_function",
    "skate.core.calls",
    "skate.core.dispatch",
    "skate.core.machine",
    "skate.core.references",
    "skate.core.streams",
    "skate.core.tasks",
    "skate.net.mailbox",
    "skate.net.pump",
    "skate.runtime.arguments",
    "skate.runtime.futures",
    "skate.runtime.loops",
    "skate.runtime.objects",
    "skate.runtime.runtime",
    "skate.runtime.streams",
    "skate.runtime.submission",
    "skate.wire.testament",
    "skate.worker.actor",
    "skate.worker.executor",
    "skate.worker.functions",
    "skate.worker.streams",
]
PURE = (
    os.environ.get("SKATE_PURE") == "1"
    or DEBUG
    or SANITIZE
    or not {"--inplace", "editable_wheel"}.isdisjoint(sys.argv)
)

cflags = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O3", "-g0"]
ldflags = []
if SANITIZE:
    cflags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    ldflags += ["-fsanitize=address,undefined"]
macros = [("CYTHON_TRACE_NOGIL", "1")] if DEBUG else []
if FAULTS:
    macros.append(("SKATE_FAULTS", "1"))

sources = {name: f"pyx/skate/_c/{name}.pyx" for name in EXTENSIONS}
extensions = [
    Extension(
        f"skate._c.{name}",
        [sources[name]],
        libraries=libraries,
        extra_compile_args=cflags,
        extra_link_args=ldflags,
        define_macros=macros,
    )
    for name, libraries in EXTENSIONS.items()
]
if not PURE:
    extensions += [
        Extension(name, [f"pkg/{name.replace('.', '/')}.py"], extra_compile_args=cflags) for name in COMPILED
    ]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["pyx", "pkg"],
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "embedsignature": True,
            "freethreading_compatible": False,
            "linetrace": DEBUG,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)

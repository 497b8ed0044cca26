"""The `skate` command, for tests, and programs that come to a node which it has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from api.rendezvous import gone


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `skate` with these arguments; blocks until it has ended."""
    return subprocess.run(
        [sys.executable, "-m", "skate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def run(text: str) -> str:
    """Runs a program to its end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=40
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def standing_node(cpus: int) -> Iterator[dict]:
    """A head that `skate start` has started, as `skate nodes` shows it; `skate stop` ends it."""
    started = command("start", "--head", "--num-cpus", str(cpus))
    assert started.returncode == 0, started.stderr
    (facts,) = json.loads(command("nodes", "--json").stdout)
    yield facts
    assert command("stop").returncode == 0
    assert gone(facts["pid"])
    assert json.loads(command("nodes", "--json").stdout) == []

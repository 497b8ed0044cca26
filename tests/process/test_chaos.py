"""The chaos runs work (`python -m chaos`): each load does something under kills, and all of it settles.

Longer runs, with other seeds and with nodes that die, are for `tox -e chaos`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_a_short_run(tmp_path: Path) -> None:
    command = [
        "-m",
        "chaos",
        "--seeds",
        "1",
        "--nodes",
        "1",
        "--seconds",
        "2",
        "--keep",
        str(tmp_path),
    ]
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert ", 0 failed" in run.stdout

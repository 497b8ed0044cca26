"""Simulations of whole clusters from seeds: thousands of short ones, a few long ones, and those that once failed.

SKATE_TEST_SIMULATIONS=20000 runs so many short ones, SKATE_TEST_SIMULATION_FIRST=n begins with another seed. A failure
names its seed, what had gone wrong in that world, and the line that runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulator's programs block in greenlets: pip install skate[test]")

from budgets import SIMULATION_FIRST as FIRST
from budgets import SIMULATIONS
from simulator.faults import PLANS
from simulator.scenario import LONG, run

BATCH = 100

#: (seed, plan) of simulations that failed, and fail again without what was mended then
MENDED = (
    (8, "calm"),  # tasks that had measured 0 s were never asked leases for
    (0, "workers"),  # refs of a `get` that failed lived until the garbage collector ran
    (91, "nodes"),  # where the bytes of an object were that was lost with its node was kept for ever
    (9, "everything"),  # a node at a dead one's address was taken for never reached
    (5, "calm"),  # actors of other nodes were kept in a table when they had ended
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(FIRST, FIRST + SIMULATIONS, BATCH))
def test_short(first: int) -> None:
    for seed in range(first, min(first + BATCH, FIRST + SIMULATIONS)):
        run(seed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", PLANS)
def test_long(plan: str) -> None:
    for seed in range(2):
        run(seed, LONG, plan)


@pytest.mark.parametrize(("seed", "plan"), MENDED)
def test_what_failed_once(seed: int, plan: str) -> None:
    run(seed, plan=plan)


@pytest.mark.parametrize("plan", ["links", "everything"])
def test_a_seed_gives_one_run(plan: str) -> None:
    assert run(8, plan=plan) == run(8, plan=plan)


def test_a_seed_gives_one_run_in_every_process() -> None:
    """Nor does it hang on the order in which sets of this process have their items."""
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-m", "simulator", "8", "--plan", "everything"]
    said = set()
    for hash_seed in ("1", "2"):
        path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout.splitlines()[0])
    assert len(said) == 1

"""How much a run does of what could go on for ever: a little for each change, a lot in a night (`tox -e nightly`).

Each budget is a variable of its own, so that one of them can be raised to look for a fault.
"""

from __future__ import annotations

import os


def _budget(name: str, a_change: int) -> int:
    return int(os.environ.get(f"SKATE_TEST_{name}", a_change))


#: processes that die at random points inside the arena
ARENA_KILLS = _budget("ARENA_KILLS", 400)
#: of the points of a call inside the arena, how many are tried: 1 is all of them, 3 every third, from a random one on
ARENA_POINTS_STRIDE = _budget("ARENA_POINTS_STRIDE", 3)
#: times that three processes inside the arena are killed from outside
ARENA_SIGKILLS = _budget("ARENA_SIGKILLS", 20)
#: kills of a head while actors are made, and while placement groups are
HEAD_KILLS = _budget("HEAD_KILLS", 6)
HEAD_KILLS_AMONG_GROUPS = _budget("HEAD_KILLS_AMONG_GROUPS", 2)
#: puts and gets of the soak, of all processes together; 100,000 take a few minutes
SOAK_OPERATIONS = _budget("SOAK_OPERATIONS", 6000)
#: short simulations, and the first one's seed
SIMULATIONS = _budget("SIMULATIONS", 400)
SIMULATION_FIRST = _budget("SIMULATION_FIRST", 0)
#: of the examples that a hypothesis test names, how many percent are tried
EXAMPLES_PERCENT = _budget("EXAMPLES_PERCENT", 40)


def examples(number: int) -> int:
    """`max_examples` of a hypothesis test that costs seconds."""
    return max(1, number * EXAMPLES_PERCENT // 100)

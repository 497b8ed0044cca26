"""Runs seeds: `PYTHONPATH=tests python -m simulator 17`, or `--seeds 1000` from there on."""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

from simulator.faults import PLANS
from simulator.scenario import LONG, SHORT, Scenario, run
from simulator.world import Failed


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m simulator", description="Runs simulations from their seeds."
    )
    options.add_argument("seed", type=int)
    options.add_argument("--seeds", type=int, default=1, metavar="N", help="so many, from this one on")
    options.add_argument("--plan", choices=list(PLANS), default="", help="what goes wrong (as the seed says)")
    options.add_argument("--long", action="store_true", help="a long one, of many nodes")
    options.add_argument("--log", action="store_true", help="what the product has logged, at the end")
    options.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    chosen = options.parse_args()
    size = LONG if chosen.long else SHORT
    failed = 0
    began = perf_counter()
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        if chosen.log:
            scenario = Scenario(seed, size, chosen.plan)
            try:
                scenario.run()
            finally:
                print("\n".join(scenario.log))
        try:
            outcome = run(seed, size, chosen.plan)
        except Failed as error:
            failed += 1
            print(f"seed {seed}: {error}", file=sys.stderr)
            if not chosen.keep_going:
                raise
            continue
        if chosen.seeds == 1:
            print(outcome)
    seconds = perf_counter() - began
    print(f"{chosen.seeds} seeds in {seconds:.1f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

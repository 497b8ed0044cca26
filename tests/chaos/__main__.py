"""The command: `PYTHONPATH=tests python -m chaos`. One line a run, a summary, exit status 1 if any run has failed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

from chaos import processes

#: seconds that a run may take beyond its load: calls that hang, settling, shutting down
GRACE_SECONDS: Final = 420.0
TESTS: Final = str(Path(__file__).parents[1])


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Everything at once, while workers and nodes are killed."
    )
    add = parser.add_argument
    add("--runs", type=int, metavar="N", help="how many (one for each seed and number of nodes)")
    add("--seconds", type=float, default=30, metavar="S", help="how long a run's load lasts (30)")
    add("--seeds", default="1-10", metavar="A-B", help="seeds, with commas and ranges (1-10)")
    add("--nodes", default="1,3", metavar="N,M", help="numbers of nodes, in turn (1,3)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    add("--loads", default="", metavar="NAMES", help="only these loads, with commas")
    add("--store", type=int, default=64, metavar="MB", help="size of each node's store (64)")
    add("--keep", metavar="FOLDER", help="where the folders of runs that failed are kept (a new one in /tmp)")
    return parser


def numbers(text: str) -> list[int]:
    """Of "1-3,7": 1, 2, 3, 7."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def plan(chosen: argparse.Namespace) -> list[tuple[int, int]]:
    """(seed, nodes) of each run. The numbers of nodes take turns from seed to seed, and then swap."""
    seeds, nodes = numbers(chosen.seeds), numbers(chosen.nodes)
    turns = [
        (seed, nodes[(index + turn) % len(nodes)])
        for turn in range(len(nodes))
        for index, seed in enumerate(seeds)
    ]
    return turns[: len(seeds)] if chosen.runs is None else list(islice(cycle(turns), chosen.runs))


def one_run(chosen: argparse.Namespace, seed: int, nodes: int) -> tuple[dict[str, Any], Path, str]:
    """Runs it: (its result, its folder, the command that repeats it)."""
    folder = Path(tempfile.mkdtemp(prefix=f"skate-chaos-{seed}-{nodes}-"))
    loads = [name for name in chosen.loads.split(",") if name]
    specification = {
        "seed": seed,
        "nodes": nodes,
        "seconds": chosen.seconds,
        "store_megabytes": chosen.store,
        "loads": loads,
        "folder": str(folder),
    }
    words = ["--seeds", seed, "--nodes", nodes, "--seconds", f"{chosen.seconds:g}", "--store", chosen.store]
    words += ["--loads", chosen.loads] if loads else []
    again = "PYTHONPATH=tests python -m chaos " + shlex.join(map(str, words))
    path = os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(folder / "run.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.run", json.dumps(specification)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": path},
            start_new_session=True,
        )
    try:
        status = str(process.wait(chosen.seconds + GRACE_SECONDS))
    except subprocess.TimeoutExpired:
        status = "none: it does not end"
    left = _end_all(f"TMPDIR={folder}".encode())
    process.wait()
    try:
        result = json.loads((folder / "result.json").read_text())
    except OSError:
        result = {"failures": [f"the run has left no result; exit status {status}, see run.log"]}
    result["failures"] += [f"left by the run: process {pid}" for pid in left]
    return result, folder, again


def _end_all(mark: bytes) -> list[int]:
    """Kills what is left of a run. Its own process has ended, or does not end."""
    left = list(processes.marked(mark))
    for pid in left:
        processes.send_signal(pid, signal.SIGKILL, mark)
    return left


def line_of(seed: int, nodes: int, result: dict[str, Any]) -> str:
    """A run in one line."""
    calls = " ".join(f"{name} {number}" for name, number in result.get("calls", {}).items())
    errors = ", ".join(f"{kind} {number}" for kind, number in sorted(result.get("errors", {}).items()))
    harm = f"killed {result.get('workers_killed', 0)}"
    if nodes > 1:
        harm += f" and {result.get('nodes_killed', 0)} nodes, stopped {result.get('nodes_stopped', 0)}"
    failures = result["failures"]
    left = sum(text.startswith(("left", "after")) for text in failures)
    return (
        f"{'FAILED' if failures else 'passed'}  seed {seed:<4} nodes {nodes}  {calls} | {harm} | "
        f"{errors or 'no errors'} | peak {result.get('peak_bytes', 0) >> 20} MB | "
        f"settled after {result.get('settled_after', 0):.1f} s | left {left}"
    )


def main() -> int:
    chosen = options().parse_args()
    runs = plan(chosen)
    keep = Path(chosen.keep or tempfile.mkdtemp(prefix="skate-chaos-failed-"))
    failed: list[str] = []
    totals: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    began = time.monotonic()

    def run(which: tuple[int, int]) -> None:
        seed, nodes = which
        result, folder, again = one_run(chosen, seed, nodes)
        text = [line_of(seed, nodes, result)]
        if result["failures"]:
            kept = keep / f"seed-{seed}-nodes-{nodes}"
            keep.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(folder, kept)
            text += ["    " + failure.strip().replace("\n", "\n    ") for failure in result["failures"]]
            text += [f"    logs: {kept}", f"    again: {again}"]
            failed.append(again)
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("workers_killed", "nodes_killed", "nodes_stopped"):
            totals[name] += result.get(name, 0)
        totals["calls"] += sum(result.get("calls", {}).values())
        errors.update(result.get("errors", {}))
        print("\n".join(text), flush=True)

    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(run, runs))
    if not failed and chosen.keep is None:
        keep.rmdir()
    print(
        f"{len(runs)} runs in {time.monotonic() - began:.0f} s, {len(failed)} failed; {totals['calls']} calls, "
        f"{totals['workers_killed']} workers and {totals['nodes_killed']} nodes killed, {totals['nodes_stopped']} "
        f"stopped; errors: {dict(sorted(errors.items())) or 'none'}"
    )
    for again in sorted(failed):
        print(f"failed: {again}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

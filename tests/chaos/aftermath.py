"""What must be true once the loads of a run have ended: everything is free, empty and in order.

`settle` waits for it and gives what is still not so; nothing, in a run that passes.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import skate
from skate.driver.nodes import ask_nodes
from skate.runtime import current
from skate.util import state

from chaos import examined, processes

#: seconds that it may take until all is free
SETTLE_SECONDS: Final = 60.0
#: lines of a log that are shown of each mishap
SHOWN_LINES: Final = 24
#: begins what a run prints about the state of all, once a load has failed
LOAD_FAILED: Final = "A load has failed."
#: a line in a log that tells of a mistake in skate itself
MISHAPS: Final = re.compile(
    r"could not be handled|Traceback|AssertionError|Exception ignored|Fatal Python error"
)


def settle(nodes: Callable[[], list[tuple[int, str]]], mark: bytes) -> tuple[float, list[str]]:
    """Seconds until nothing was left, and what was left after SETTLE_SECONDS.

    `nodes` gives (pid of the manager, its session's folder) of each node.
    """
    began = time.monotonic()
    while True:
        gc.collect()
        left = [*resources_in_use(), *objects_listed(nodes()), *known_to_the_driver(), *spilled(nodes())]
        seconds = time.monotonic() - began
        if not left or seconds > SETTLE_SECONDS:  # else it is too early to ask
            left += managers_have(nodes(), mark)
            left += nodes_agree([folder for _, folder in nodes()])  # (a node's death is known after 3 s)
        if not left or seconds > SETTLE_SECONDS:
            return seconds, left + broken_in_the_driver()
        time.sleep(0.2)


def resources_in_use() -> list[str]:
    total, available = skate.cluster_resources(), skate.available_resources()
    return [
        f"{name}: {available.get(name, 0)} of {amount} free"
        for name, amount in sorted(total.items())
        if abs(available.get(name, 0) - amount) > 1e-6
    ]


def objects_listed(nodes: list[tuple[int, str]]) -> list[str]:
    managers = [pid for pid, _ in nodes]
    return [
        f"in the store: {each}" + ", made by its node manager" * (each.creator_pid in managers)
        for each in state.list_objects(limit=5)
    ]


def spilled(nodes: list[tuple[int, str]]) -> list[str]:
    found = []
    for _, folder in nodes:
        path = os.path.join(folder, "spill")
        found += [f"spilled: {path}/{name}" for name in (os.listdir(path) if os.path.isdir(path) else [])]
    return found


def known_to_the_driver() -> list[str]:
    """Entries in the driver's tables."""
    runtime = current.runtime
    assert runtime is not None
    dispatcher, calls = runtime.dispatcher, runtime.actors.calls
    tables: dict[str, Any] = {
        "objects": runtime.references.entries,
        "tasks": runtime.submission.tasks,
        "leases": dispatcher.leases,
        "queues with tasks": [
            queue for queue in dispatcher.queues.values() if queue.tasks or queue.arguments
        ],
        "late leases": dispatcher._late,
        "actors made": runtime.actors._made,
        "lines of calls": dict(calls.lines),
        "late lives": calls._late,
        "copies": runtime.copies.machine.placed,
        "event loops": runtime.objects.loops._known,
        "to be told of frees": runtime.objects.when_freed,
        "questions": runtime._queries,
        "groups": runtime.groups._states,
        "groups awaited": runtime.groups._awaited,
        "dropped": runtime.lock.dropped,
    }
    return [f"the driver has {len(table)} {name}: {_some(table)}" for name, table in tables.items() if table]


def _some(table: Any) -> str:
    values = list(table.values() if isinstance(table, dict) else table)[:3]
    return "; ".join(examined.describe(value) for value in values)


def broken_in_the_driver() -> list[str]:
    """What the driver's machines say of themselves."""
    runtime = current.runtime
    assert runtime is not None
    found = []
    for machine in (runtime.dispatcher, runtime.references, runtime.actors.calls, runtime.copies.machine):
        with runtime.lock:
            try:
                machine.check()
            except Exception as error:
                found.append(f"{type(machine).__name__}: {error!r}")
    return found


# ------------------------------------------------------------------------------------------------ the node managers


def ask_managers(
    nodes: list[tuple[int, str]], mark: bytes, seconds: float = 10.0
) -> dict[int, dict[str, Any]]:
    """What each node manager says it has, by pid; see `examined`. Those that do not answer are not there."""
    answers: dict[int, dict[str, Any]] = {}
    for pid, _ in nodes:
        examined.path_of(pid).unlink(missing_ok=True)
        processes.send_signal(pid, signal.SIGUSR1, mark)
    deadline = time.monotonic() + seconds
    while len(answers) < len(nodes) and time.monotonic() < deadline:
        for pid, _ in nodes:
            path = examined.path_of(pid)
            if pid not in answers and path.exists():
                answers[pid] = json.loads(path.read_text())
        time.sleep(0.01)
    return answers


def managers_have(nodes: list[tuple[int, str]], mark: bytes) -> list[str]:
    """What node managers still have for somebody, and what their machines say of themselves."""
    answers = ask_managers(nodes, mark)
    found = [f"node manager {pid} does not answer" for pid, _ in nodes if pid not in answers]
    for pid, answer in answers.items():
        found += [f"node manager {pid}: {text}" for text in answer["broken"]]
        found += [f"node manager {pid} has {what}: {some}" for what, some in answer["left"].items()]
    return found


def nodes_agree(folders: list[str]) -> list[str]:
    """All nodes know the same ones to live, and these are all there are."""
    tables = {folder: sorted(row["node"] for row in ask_nodes(folder) if row["alive"]) for folder in folders}
    if (
        any(len(living) != len(folders) for living in tables.values())
        or len({*map(tuple, tables.values())}) > 1
    ):
        return [f"nodes that live, as each says: {tables}"]
    return []


def mishaps(folder: Path) -> list[str]:
    """Lines of the run's logs that tell of a mistake in skate, each with what follows it. The first few of each log."""
    found = []
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(errors="replace").partition(LOAD_FAILED)[0].split("\n")
        number = 0
        told: set[str] = set()
        while number < len(lines) and len(told) < 5:
            if MISHAPS.search(lines[number]):
                text = lines[number : number + SHOWN_LINES]
                if "\n".join(text[2:]) not in told:  # the same again is no news
                    told.add("\n".join(text[2:]))
                    found.append(f"{path.name}:{number + 1}: " + "\n        ".join(text))
                number += SHOWN_LINES - 1
            number += 1
    return found

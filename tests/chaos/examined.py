"""Inside a run's node managers: SIGUSR1 has one check its machines and write down what it still has.

`prepare` in the driver has every node manager that it starts load this module first. The zygote and the workers inherit
what `install` does: at SIGUSR2 each prints where its threads are, at SIGUSR1 a worker prints what it waits for.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skate._c.refs import PENDING
from skate.ids import ProcessId, node_of, owner_of


def prepare() -> None:
    """From here on this process starts node managers that can be examined."""
    from skate.driver import nodes

    start = "from skate.node.main import"
    boot = nodes.boot

    def boot_examined(*what: Any) -> list[str]:
        arguments = boot(*what)
        assert any(start in each for each in arguments)
        return [
            each.replace(start, f"from chaos.examined import install; install(); {start}")
            for each in arguments
        ]

    nodes.boot = boot_examined


def install() -> None:
    """In a node manager that is about to start."""
    from skate.node.manager import NodeManager

    faulthandler.register(signal.SIGUSR2, all_threads=True)
    turn = NodeManager._turn
    asked: list[bool] = []
    managers: list[NodeManager] = []

    def wake(*_: Any) -> None:
        asked.append(True)
        print_what_is_awaited()  # in a worker
        for manager in managers:
            manager._mailbox.poke()

    def turn_and_look(self: NodeManager, until: float | None = None) -> None:
        if self not in managers:
            managers.append(self)
        turn(self, until)
        if asked:
            asked.clear()
            _write(examine(self))

    NodeManager._turn = turn_and_look  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, wake)


def print_what_is_awaited() -> None:
    """Objects without a value that this process knows; nothing in one that is neither driver nor worker."""
    from skate.runtime import current

    runtime = current.runtime
    if runtime is None:
        return
    for entry in list(runtime.references.entries.values()):
        if entry.state == PENDING:
            owner = owner_of(entry.id)
            known = (
                f"asked={entry.asked} dead={runtime.references.has_died(owner)} task={entry.id[:16].hex()}"
            )
            print(f"process {runtime.me.hex()} lacks {entry!r}: {known}", file=sys.stderr, flush=True)


def path_of(pid: int) -> Path:
    """Where a node manager writes what it was asked for."""
    return Path(os.environ["SKATE_TMPDIR"], f"examined-{pid}.json")


def _write(found: dict[str, Any]) -> None:
    path = path_of(os.getpid())
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found))
    new.rename(path)


def machines_of(manager: Any) -> Iterator[tuple[str, Any]]:
    yield "admission", manager._admission
    yield "shares", manager._scheduling.shares
    yield "actors", manager._actors.directory
    yield "names", manager._actors.names.table
    yield "groups", manager._groups.directory
    yield "followed groups", manager._groups.followed
    yield "pulls", manager._puller.machine
    yield "spilling", manager._spiller.machine
    yield "roster", manager.cluster.roster
    if manager.cluster.register is not None:
        yield "register", manager.cluster.register


def examine(manager: Any) -> dict[str, Any]:
    """{"broken": what a check says, "left": what the node manager still has for somebody}, as text."""
    broken = []
    for name, machine in machines_of(manager):
        try:
            machine.check()
        except Exception as error:
            broken.append(f"{name}: {error!r}")
    admission = manager._admission
    actors = manager._actors.directory.actors
    left = {
        "requests": [each for each in admission.requests.values() if each.wanted or each.reserved],
        "leases": list(admission.leases.values()),
        "actors": [each for each in actors.values() if each.worker is not None],
        "objects": manager._store.objects(),
        "pulls": list(manager._puller.machine.pulls.values()),
        "groups": list(manager._groups.directory.groups.values()),
        "splits": [
            split
            for split in manager._scheduling.shares.splits.values()
            if any(share.waiting or share.reserved for share in split.shares.values())
        ],
        "splits of the dead": [
            split
            for (owner, _), split in manager._scheduling.shares.splits.items()
            if is_gone(manager, owner)
        ],
        "requests of the dead": [
            request for (owner, _), request in admission.requests.items() if is_gone(manager, owner)
        ],
    }
    shown = {what: [describe(each) for each in some[:5]] for what, some in left.items() if some}
    sizes = {what: len(some) for what, some in left.items()} | {"workers": len(admission.workers)}
    return {
        "broken": broken,
        "left": shown,
        "sizes": sizes,
        "available": admission.resources.available_dict(),
    }


def is_gone(manager: Any, owner: ProcessId) -> bool:
    """Whether a process has ended, as this node manager knows: of its own ones, and of nodes that died."""
    if node_of(owner) == manager.node:
        return owner not in manager._processes and owner != manager.me
    return bool(manager.cluster.roster.is_dead(node_of(owner)))


def describe(thing: Any, depth: int = 1) -> str:
    """An object with its attributes: most have no repr that says enough."""
    names = getattr(type(thing), "__slots__", None) or list(getattr(thing, "__dict__", ()))
    if not names or depth < 0:
        return repr(thing)[:200]
    fields = (f"{name}={describe(getattr(thing, name, None), depth - 1)}" for name in names)
    return f"{type(thing).__name__}({', '.join(fields)})"[:1500]

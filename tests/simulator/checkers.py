"""What must hold at any time, and what must be true once all is quiet. One function a property.

`Always.after` runs after each step of a process: the `check()` of each of its machines. The functions below it run when
the programs have ended and all has settled; each raises Failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skate.core.group_records import CREATED

from simulator.cluster import Cluster
from simulator.node import Node
from simulator.world import Failed


def machines_of(process: Any) -> Iterator[tuple[str, Any]]:
    """The product's machines in a node manager, or in a driver or worker."""
    if isinstance(process, Node):
        manager = process.manager
        yield "admission", manager.admission
        yield "resources", manager.admission.resources
        yield "shares", manager.scheduling.shares
        yield "actors", manager.actors.directory
        yield "names", manager.actors.names.table
        yield "groups", manager.groups.directory
        yield "followed groups", manager.groups.followed
        if manager.groups.ledger is not None:
            yield "ledger", manager.groups.ledger.ledger
        yield "pulls", manager.puller.machine
        yield "settling", manager.settlements.machine
        yield "roster", manager.cluster.roster
        if manager.cluster.register is not None:
            yield "register", manager.cluster.register
        sockets = process.cluster.network.bound.get(process.address)
        if sockets is not None and sockets.node == process.id:
            for node, conversation in sockets.conversations().items():
                yield f"delivery to {node.hex()}", conversation.outgoing
    elif process.runtime is not None:
        runtime = process.runtime
        yield "dispatcher", runtime.dispatcher
        yield "references", runtime.references
        yield "calls", runtime.actors.calls
        yield "copies", runtime.copies.machine


class Always:
    """Runs the machines' own checks of whoever has run, each `every`th time."""

    def __init__(self, cluster: Cluster, every: int = 1) -> None:
        self._every = every
        self._steps = 0
        self._world = cluster.world

    def after(self, process: Any) -> None:
        self._steps += 1
        if self._steps % self._every or not process.alive:
            return
        for name, machine in machines_of(process):
            try:
                machine.check()
            except Exception as error:
                raise Failed(
                    f"at {self._world.elapsed:.6f} s, {name} of {process.id.hex()}: {error}"
                ) from None


# -------------------------------------------------------------------------------------------------- once all is quiet


def every_get_has_ended(cluster: Cluster, ledger: Any) -> None:
    waiting = [driver for driver in cluster.drivers if driver.alive and not driver.finished]
    if waiting:
        places = "; ".join(driver.where() for driver in waiting)
        gets = f"{ledger.begun} gets have begun, {ledger.ended} ended"
        raise Failed(f"{len(waiting)} programs wait for ever ({gets}), in {places}")


def nodes_agree(cluster: Cluster) -> None:
    if not cluster.joined():
        tables = {
            node.id.hex(): sorted(row.node.hex() for row in node.manager.cluster.roster.living())
            for node in cluster.living()
        }
        raise Failed(f"nodes do not agree on who lives: {tables}")


def resources_are_whole(cluster: Cluster) -> None:
    """Nothing is reserved, lent or waited for on any node."""
    for node in cluster.living():
        admission = node.manager.admission
        total, available = admission.resources.all_units()
        if total != available:
            raise Failed(f"{node} has {available} of {total}; leases: {admission.leases}")
        wanting = [request for request in admission.requests.values() if request.wanted or request.reserved]
        if wanting:
            raise Failed(f"{node} still has requests: {wanting}")
        if admission.leases:
            raise Failed(f"{node} still has leases: {admission.leases}")


def nobody_owns_anything(cluster: Cluster) -> None:
    """All refs are dropped: no process knows of any object, none is stored, no task or call is under way."""
    for process in cluster.owners():
        runtime = process.runtime
        if runtime is None:
            continue
        if runtime.references.entries:
            some = list(runtime.references.entries.values())[:5]
            raise Failed(
                f"{process.kind} {process.id.hex()} still knows {len(runtime.references.entries)}: {some}"
            )
        if runtime.submission.tasks:
            raise Failed(
                f"{process.kind} {process.id.hex()} still has tasks: {list(runtime.submission.tasks)[:5]}"
            )
        if runtime.dispatcher.leases:
            raise Failed(f"{process.kind} {process.id.hex()} still has leases: {runtime.dispatcher.leases}")
        if runtime.copies.machine.placed:
            raise Failed(
                f"{process.kind} {process.id.hex()} still places {list(runtime.copies.machine.placed)[:5]}"
            )


def stores_are_empty(cluster: Cluster) -> None:
    for node in cluster.living():
        left = node.arena.objects()
        if left:
            some = [(row["id"].hex(), row["owner"].hex()) for row in left[:5]]
            raise Failed(f"{len(left)} objects are left in the store of {node}: {some}")
        if node.manager.puller.machine.pulls:
            raise Failed(f"{node} still pulls {list(node.manager.puller.machine.pulls.values())}")


def actors_have_ended(cluster: Cluster, ledger: Any) -> None:
    """No handle is left, so no actor is."""
    for node in cluster.living():
        living = [
            actor for actor in node.manager.actors.directory.actors.values() if actor.worker is not None
        ]
        if living:
            raise Failed(f"{node} still has actors: {living}")
    for actor, lives in ledger.lives.items():
        alive = [life for life in lives if life.alive]
        if alive:
            raise Failed(f"actor {actor.hex()} still lives, in {[life.id.hex() for life in alive]}")


def groups_are_whole_or_absent(cluster: Cluster) -> None:
    """Each bundle that a node has is one of a living group that is told to be there; each of those has all of its."""
    held: dict[bytes, int] = {}
    for node in cluster.living():
        for group, bundles in node.manager.bundles_held().items():
            held[group] = held.get(group, 0) + bundles
    known: dict[bytes, int] = {}
    for node in cluster.living():
        for group_id, group in node.manager.groups.directory.groups.items():
            known[group_id] = len(group.spec.bundles) if group.state == CREATED else 0
    for group, bundles in held.items():
        if known.get(group) != bundles:
            raise Failed(f"{bundles} bundles of group {group.hex()} are held, of {known.get(group)}")


def links_are_idle(cluster: Cluster) -> None:
    """All that nodes have said to each other has arrived."""
    for node in cluster.living():
        sockets = cluster.network.bound[node.address]
        for other, conversation in sockets.conversations().items():
            if len(conversation.outgoing):
                raise Failed(f"{len(conversation.outgoing)} frames of {node} have not reached {other.hex()}")


def nothing_is_left_of_jobs(cluster: Cluster) -> None:
    """Once the drivers have left, too: no worker, no job."""
    for process in cluster.owners():
        raise Failed(f"{process.kind} {process.id.hex()} is left")
    for node in cluster.living():
        if node.manager.jobs:
            raise Failed(f"{node} still knows jobs {list(node.manager.jobs)}")


def of_the_dead_nothing_is_known(cluster: Cluster) -> None:
    """What processes asked for that are gone, or their nodes, is taken back everywhere."""
    living = {process.id for process in cluster.owners()} | {node.manager.me for node in cluster.living()}
    for node in cluster.living():
        manager = node.manager
        known = {
            "a request": [owner for owner, _ in manager.admission.requests],
            "a split": [owner for owner, _ in manager.scheduling.shares.splits],
            "as a stranger": list(manager.strangers),
        }
        for what, owners in known.items():
            for owner in owners:
                if owner not in living:  # (an actor is an owner, too, and none lives any more)
                    raise Failed(f"{node} still has {what} of {owner.hex()}, which is gone")


def no_group_is_left(cluster: Cluster) -> None:
    for node in cluster.living():
        if node.manager.groups.directory.groups:
            raise Failed(f"{node} still has groups {list(node.manager.groups.directory.groups.values())}")


def check_quiet(cluster: Cluster, ledger: Any) -> None:
    """Programs have ended, and all has had time to settle."""
    every_get_has_ended(cluster, ledger)
    nodes_agree(cluster)
    resources_are_whole(cluster)
    actors_have_ended(cluster, ledger)
    nobody_owns_anything(cluster)
    stores_are_empty(cluster)
    groups_are_whole_or_absent(cluster)
    no_group_is_left(cluster)
    of_the_dead_nothing_is_known(cluster)
    links_are_idle(cluster)

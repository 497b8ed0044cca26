"""Heads that are killed and come back, and the nodes that live on: real directories and ledgers, a world of plain sets.

What the head says leaves at the end of its turn, when what it has decided is written; a kill loses both. Nodes keep the
workers of detached actors, and call when another head has come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.actors import ALIVE, DEAD
from skate.core.ledger import Record
from skate.core.roster import Roster, Row
from skate.ids import ActorId, NodeId, ProcessId, manager_of, node_of, process_id
from skate.node.actors import NodeActors
from skate.node.head import HeadLink
from skate.node.ledger import NodeLedger
from skate.node.processes import Job
from skate.node.recovery import HeadRecovery
from skate.wire import messages as m


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(4, "big"))


def row(node: NodeId) -> Row:
    return Row(node, "10.0.0.1:7", "host", 1, "/tmp", False, {}, {}, {}, [], True, "")


JOB = {"id": "job", "driver": "00000000" * 2}
#: restarts that actors may have
RESTARTS = [0, 1, -1]


class File:
    """What is written stays, whoever dies."""

    named, path = True, "head.sqlite"

    def __init__(self) -> None:
        self.facts: dict[tuple[str, bytes], Any] = {}

    def records(self) -> list[Record]:
        return [Record(kind, key, body) for (kind, key), body in self.facts.items()]

    def write(self, records: list[Record]) -> None:
        for kind, key, body in records:
            if body is None:
                del self.facts[kind, key]
            else:
                self.facts[kind, key] = body


class Worker:
    """A worker of a node that a directory was given for an actor."""

    def __init__(self, actor: ActorId, lease: int) -> None:
        self.actor = actor
        self.lease = lease
        self.lives_as_actor = False  # it was told to become the actor
        self.made = False


class NoGroups:
    """They have a model of their own: test_group_recovery_model."""

    def recovered(self, kept: list[Any], former: list[NodeId]) -> None:
        assert not kept

    def life_ended(self, actor: ActorId) -> None: ...


class Head:
    """The head's node, as far as actors go."""

    def __init__(self, world: World, me: NodeId) -> None:
        self.me = me
        self.world = world
        self.before: Callable[[], None] | None = None
        self.outbox: list[tuple[ProcessId, Any]] = []
        self.wanted: dict[ActorId, None] = {}
        self.jobs = {"job": Job(JOB)}
        self.ledger = NodeLedger(world.file, self, lambda _: JOB, print)  # type: ignore[arg-type]
        link = HeadLink(me, self.post)
        self.actors = NodeActors(
            link, self, self.post, self.kill, lambda _: True, lambda _, variables: ("job", ()), lambda _: False,
            lambda _: None,
        )  # type: ignore[arg-type]  # fmt: skip
        self.roster = link.roster = Roster(row(me)._replace(head=True), in_cluster=True)
        self.actors.names.ledger = self.ledger
        self.recovery = HeadRecovery(
            me, self.ledger, self.actors, NoGroups(), self.jobs, lambda _: None, self.post
        )  # type: ignore[arg-type]
        self.recovery.begin(self.roster, lambda rows, _: None)
        self.awaited = {each["node"] for each in self.ledger.ledger.nodes()}

    # as its mailbox and scheduling

    def hold(self, before: Callable[[], None]) -> None:
        self.before = before

    def post(self, to: ProcessId, message: Any) -> None:
        self.outbox.append((to, message))

    def wants(self, owner: ProcessId, *_: Any, **__: Any) -> None:
        assert owner not in self.wanted, "an actor is asked for twice"
        self.wanted[ActorId(owner)] = None  # type: ignore[arg-type]

    def housed(self, actor: ProcessId, *_: Any) -> None:
        assert actor not in self.wanted

    def actor_placed(self, actor: ActorId) -> None:
        assert actor not in self.wanted

    def owner_left(self, owner: ProcessId) -> None:
        self.wanted.pop(ActorId(owner), None)  # type: ignore[arg-type]
        for node in self.world.workers:
            self.post(manager_of(node), m.OwnerLeft(owner))

    def kill(self, worker: ProcessId, why: str) -> None:
        self.post(manager_of(worker), m.EndWorker(worker, why))

    def write(self) -> None:
        """The end of a turn, but that nothing has left."""
        while self.actors.act():
            pass
        if self.before is not None:
            before, self.before = self.before, None
            before()

    def turn(self) -> None:
        self.write()
        outbox, self.outbox = self.outbox, []
        for to, message in outbox:
            self.world.deliver(to, message)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.serial = itertools.count(1)
        self.file = File()
        #: node -> its workers
        self.workers: dict[NodeId, dict[ProcessId, Worker]] = {}
        self.dead: list[ProcessId] = []  # whose deaths the head has not heard of
        self.told: dict[int, tuple[str, ActorId]] = {}
        #: name -> the actor that its maker was told has it, and its restarts
        self.known: dict[str, ActorId] = {}
        self.restarts: dict[ActorId, int] = {}
        self.start_head()

    def start_head(self) -> None:
        self.head = Head(self, node_id(next(self.serial)))
        self.workers[self.head.me] = {}
        for node in self.workers:
            if node != self.head.me:
                self.head.ledger.ledger.node_listed(node, row(node).to_plain())
        self.to_call = [node for node in self.workers if node != self.head.me]
        self.head.turn()

    def deliver(self, to: ProcessId, message: Any) -> None:
        if type(message) is m.StateReply:
            name, actor = self.told.pop(message.token)
            assert message.value is None, "two actors want one name"
            self.known[name] = actor
        elif type(message) is m.EndWorker:
            if message.worker in self.workers.get(node_of(message.worker), {}):
                self.end(node_of(message.worker), message.worker)
        elif type(message) is m.OwnerLeft:
            workers = self.workers.get(node_of(to), {})
            for worker in [worker for worker, each in workers.items() if each.actor == message.owner]:
                self.end(node_of(to), worker)
        elif type(message) is m.BecomeActor:
            worker = self.workers.get(node_of(to), {}).get(to)
            if worker is not None:
                assert worker.actor == message.actor
                worker.lives_as_actor = True
                if worker.made:
                    self.head.actors.directory.started(to, b"")

    def end(self, node: NodeId, worker: ProcessId) -> None:
        del self.workers[node][worker]
        self.dead.append(worker)

    def some_worker(self, data: st.DataObject) -> tuple[NodeId, ProcessId] | None:
        found = [(node, worker) for node, workers in self.workers.items() for worker in workers]
        return data.draw(st.sampled_from(found)) if found else None

    # -- what happens

    @rule()
    def turn(self) -> None:
        self.head.turn()

    @rule()
    @precondition(lambda self: len(self.workers) < 4)
    def node_joins(self) -> None:
        node = node_id(next(self.serial))
        self.workers[node] = {}
        self.head.ledger.nodes_changed([row(node)], self.head.me)
        self.head.turn()

    @rule(restarts=st.sampled_from(RESTARTS), described=st.booleans(), ends_turn=st.booleans())
    @precondition(lambda self: len(self.restarts) < 12)
    def actor_is_made(self, restarts: int, described: bool, ends_turn: bool) -> None:
        number = next(self.serial)
        maker = Job  # anything with an id
        process = process_id(self.head.me, 1)
        actor = ActorId(process + number.to_bytes(8, "big"))  # type: ignore[arg-type]
        name = f"name{number}"
        self.restarts[actor] = restarts
        self.told[number] = (name, actor)
        maker = type("Maker", (), {"id": process})
        handlers = self.head.actors.handlers
        handlers[m.RegisterActor.code](maker, number, actor, name, "x", True, b"about", b"")  # type: ignore[attr-defined]
        if described:
            spec = {
                "environment": None, "demand": {}, "where": None, "depth": 0, "lends": True, "max_restarts": restarts
            }  # fmt: skip
            handlers[m.MakeActor.code](maker, actor, spec, b"")  # type: ignore[attr-defined]
        if ends_turn:
            self.head.turn()

    @rule(data=st.data(), ends_turn=st.booleans())
    def worker_is_granted(self, data: st.DataObject, ends_turn: bool) -> None:
        if not self.head.wanted or self.to_call:
            return
        actor = data.draw(st.sampled_from(list(self.head.wanted)))
        node = data.draw(st.sampled_from(sorted(self.workers)))
        del self.head.wanted[actor]
        worker, lease = process_id(node, next(self.serial)), next(self.serial)
        self.workers[node][worker] = Worker(actor, lease)
        asker = type("Manager", (), {"id": manager_of(node)})
        allocation = {"resources": {"CPU": 1.0}, "devices": []}
        self.head.actors.placed_elsewhere(asker, actor, worker, lease, allocation, "")
        if ends_turn:
            self.head.turn()

    @rule(data=st.data())
    def constructor_returns(self, data: st.DataObject) -> None:
        found = self.some_worker(data)
        if found is not None and self.workers[found[0]][found[1]].lives_as_actor:
            self.workers[found[0]][found[1]].made = True
            self.head.actors.directory.started(found[1], b"")

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        found = self.some_worker(data)
        if found is not None:
            self.end(*found)

    @rule()
    def deaths_are_heard_of(self) -> None:
        dead, self.dead = self.dead, []
        for worker in dead:
            self.head.actors.process_left(worker, "{}")
        self.head.turn()

    @rule(data=st.data(), ends_turn=st.booleans())
    @precondition(lambda self: self.known)
    def actor_is_killed(self, data: st.DataObject, ends_turn: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.head.actors.handlers[m.KillActor.code](None, self.known.pop(name), True, "the test")  # type: ignore[attr-defined]
        if ends_turn:
            self.head.turn()

    @rule(wrote=st.booleans())
    def head_is_killed(self, wrote: bool) -> None:
        """In the middle of a turn; or when it has written, and nobody has heard; or while it waits for calls."""
        if wrote:
            self.head.write()
        del self.workers[self.head.me]
        self.told.clear()
        self.dead.clear()
        self.start_head()

    @rule(data=st.data())
    @precondition(lambda self: self.to_call)
    def node_calls(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.to_call))
        self.call(node)

    def call(self, node: NodeId) -> None:
        self.to_call.remove(node)
        housed = [
            (each.actor, worker, each.lease, {"resources": {"CPU": 1.0}, "devices": []})
            for worker, each in self.workers[node].items()
        ]
        self.head.actors.names.called(node, [])
        self.head.recovery.called(node, housed)
        self.head.turn()

    @rule(data=st.data())
    @precondition(lambda self: self.to_call)
    def node_does_not_come_back(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.to_call))
        self.to_call.remove(node)
        del self.workers[node]
        self.head.ledger.nodes_changed([row(node)._replace(alive=False)], self.head.me)
        self.head.actors.node_left(node, "{}")
        self.head.actors.names.node_died(node)
        self.head.recovery.node_died(node)
        self.head.turn()

    # -- what must hold

    @invariant()
    def checks(self) -> None:
        self.head.actors.directory.check()
        self.head.actors.names.table.check()
        self.head.ledger.ledger.check()

    @invariant()
    def one_life_at_a_time(self) -> None:
        lives = [
            each.actor
            for workers in self.workers.values()
            for each in workers.values()
            if each.lives_as_actor
        ]
        assert len(set(lives)) == len(lives)

    def teardown(self) -> None:
        """All nodes call, all deaths are heard of, all that is wanted is granted: the directory and the world agree."""
        for node in list(self.to_call):
            self.call(node)
        self.head.turn()
        directory = self.head.actors.directory
        for _ in range(20):
            self.deaths_are_heard_of()
            for actor in list(self.head.wanted):
                del self.head.wanted[actor]
                worker = process_id(self.head.me, next(self.serial))
                self.workers[self.head.me][worker] = Worker(actor, 1)
                asker = type("Manager", (), {"id": manager_of(self.head.me)})
                self.head.actors.placed_elsewhere(
                    asker, actor, worker, 1, {"resources": {}, "devices": []}, ""
                )
            self.head.turn()
            for workers in self.workers.values():
                for worker, each in workers.items():
                    if each.lives_as_actor and not each.made:
                        each.made = True
                        directory.started(worker, b"")
            self.head.turn()
        housed = {each.actor: worker for workers in self.workers.values() for worker, each in workers.items()}
        there = {actor.id: actor.worker for actor in directory.actors.values() if actor.state != DEAD}
        assert {actor: worker for actor, worker in there.items() if worker is not None} == housed
        assert all(actor.state == ALIVE for actor in directory.actors.values() if actor.worker is not None)
        for name, actor in self.known.items():
            found = self.head.actors.names.table.find(name, "x")
            if self.restarts[actor] == -1 and actor in housed:
                assert found is not None
                assert found.id == actor
            assert found is None or found.id == actor
            assert (found is None) == (actor not in there), "a name is as long as its actor"
        names = {named[1] for named in self.head.actors.names.table.listing()}
        assert len(names) == len(there)


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=examples(200), stateful_step_count=50)

"""A head's ledger, cut off after any record, against plain dictionaries."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.actors import ALIVE, PENDING, RESTARTING
from skate.core.ledger import Gang, Ledger, Record, Standing
from skate.ids import ActorId, NodeId, process_id
from skate.node.state_file import StateFile


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(4, "big"))


def actor_id(node: NodeId, number: int) -> ActorId:
    return ActorId(process_id(node, 1) + number.to_bytes(8, "big"))  # type: ignore[arg-type]


class Model:
    """What a head knows, as a user would say it."""

    def __init__(self) -> None:
        self.heads: list[NodeId] = []
        self.nodes: set[NodeId] = set()
        self.names: dict[tuple[str, str], ActorId] = {}
        #: detached actors of the heads -> how they stand
        self.actors: dict[ActorId, Standing] = {}
        self.specs: dict[ActorId, str] = {}  # with the job of each
        self.groups: dict[bytes, Gang] = {}

    def copy(self) -> Model:
        other = Model()
        other.heads, other.nodes = list(self.heads), set(self.nodes)
        other.names, other.actors, other.specs = dict(self.names), dict(self.actors), dict(self.specs)
        other.groups = dict(self.groups)
        return other

    def dies(self) -> None:
        """The head's node is dead: what needed its processes is gone."""
        for actor in [actor for actor in self.actors if actor not in self.specs]:
            self.ends(actor)
        for key, actor in list(self.names.items()):
            node = NodeId(actor[:4])
            if actor not in self.actors if node in self.heads else node not in self.nodes:
                del self.names[key]
        for group, gang in list(self.groups.items()):
            life = gang.lives_with
            nodes = [node if node in self.nodes else None for node in gang.nodes]
            self.groups[group] = gang._replace(nodes=nodes)
            if life is not None and life not in self.actors and (life[:4] not in self.nodes):
                del self.groups[group]
        of_some = {NodeId(actor[:4]) for actor in self.actors} | set(self.heads[-1:])
        self.heads = [head for head in self.heads if head in of_some or self.groups]

    def ends(self, actor: ActorId) -> None:
        self.actors.pop(actor, None)
        self.specs.pop(actor, None)
        self.names = {key: other for key, other in self.names.items() if other != actor}

    def agrees_with(self, ledger: Ledger) -> None:
        assert ledger.heads() == self.heads
        assert {row["node"] for row in ledger.nodes()} == {node.hex() for node in self.nodes}
        named = {(namespace, name): actor for actor, name, namespace, _ in ledger.names()}
        assert named == self.names
        kept = {each.actor: each for each in ledger.actors()}
        assert {actor: each.standing for actor, each in kept.items()} == self.actors
        assert {actor: each.spec["environment"][0] for actor, each in kept.items()} == self.specs
        assert {job["id"] for job in ledger.jobs()} == set(self.specs.values())
        assert dict(ledger.groups()) == self.groups
        for each in kept.values():
            assert each.about == (f"about {each.standing.name}" if each.standing.name else None)


NAMES = st.sampled_from(["", "a", "b", "c"])
JOBS = st.sampled_from(["job1", "job2"])


class Heads(RuleBasedStateMachine):
    """A head does what heads do, in the order in which it does it; it dies after any record, and another one takes up
    what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.serial = itertools.count(1)
        self.folder = tempfile.mkdtemp(prefix="skate-ledger-")
        self.files = itertools.count(1)
        self.path = ""
        self.file: StateFile | None = None
        self.start(Model(), [])

    def start(self, model: Model, records: list[Record]) -> None:
        """A head begins, with what the last one has left."""
        self.written = list(records)
        self.ledger = Ledger(records)
        self.ledger.check()
        self.model = model
        self.model.dies()
        lost = self.ledger.mend()
        assert all(actor not in self.model.actors for actor, _ in lost)
        self.me = node_id(next(self.serial))
        self.ledger.head_began(self.me)
        self.model.heads.append(self.me)
        self.ledger.check(mended=True)
        self.commit()

    def commit(self) -> None:
        """The turn ends: all of it is written."""
        self.written += self.ledger.take_records()
        self.safe = self.model.copy()

    # -- what happens

    @rule()
    def turn_ends(self) -> None:
        self.commit()

    @rule()
    def a_node_joins(self) -> None:
        node = node_id(next(self.serial))
        self.ledger.node_listed(node, {"node": node.hex()})
        self.ledger.node_listed(node, {"node": node.hex(), "free": "less"})
        self.model.nodes.add(node)

    @rule(data=st.data())
    @precondition(lambda self: self.model.nodes)
    def a_node_dies(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.model.nodes)))
        self.ledger.node_died(node)
        self.model.nodes.discard(node)
        for (namespace, name), actor in list(self.model.names.items()):
            if actor.startswith(node):
                self.ledger.name_freed(name, namespace)
                del self.model.names[namespace, name]

    @rule(
        data=st.data(),
        name=NAMES,
        namespace=st.sampled_from(["x", "", "é"]),
        here=st.booleans(),
        detached=st.booleans(),
    )
    def an_actor_is_registered(
        self, data: st.DataObject, name: str, namespace: str, here: bool, detached: bool
    ) -> None:
        if (namespace, name) in self.model.names:
            return
        others = sorted(self.model.nodes)
        node = self.me if here or not others else data.draw(st.sampled_from(others))
        actor = actor_id(node, next(self.serial))
        if name:
            self.ledger.name_taken(actor, name, namespace, f"about {name}")
            self.model.names[namespace, name] = actor
        if detached and node == self.me:
            self.stands(actor, Standing(name, namespace, PENDING, 0, 0, b"", 0, None))

    def stands(self, actor: ActorId, standing: Standing) -> None:
        self.ledger.actor_stands(actor, standing)
        self.model.actors[actor] = standing

    def some(self, data: st.DataObject, described: bool) -> ActorId | None:
        found = [actor for actor in self.model.actors if (actor in self.model.specs) == described]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data(), job=JOBS, restarts=st.integers(-1, 2))
    def its_arguments_are_there(self, data: st.DataObject, job: str, restarts: int) -> None:
        actor = self.some(data, described=False)
        if actor is not None:
            spec = {"environment": (job, ()), "class": b"pickle", "large": bytes(5000)}
            self.ledger.actor_described(actor, spec, {"id": job, "driver": "00"})
            self.model.specs[actor] = job
            self.stands(actor, self.model.actors[actor]._replace(restarts_left=restarts))

    @rule(data=st.data(), number=st.integers(1, 50))
    def it_is_placed_and_made(self, data: st.DataObject, number: int) -> None:
        actor = self.some(data, described=True)
        if actor is not None:
            node = data.draw(st.sampled_from([self.me, *sorted(self.model.nodes)]))
            standing = self.model.actors[actor]._replace(
                state=ALIVE,
                worker=process_id(node, number),
                lease=number,
                allocation={"resources": {"CPU": 1.0}},
            )
            self.stands(actor, standing)

    @rule(data=st.data())
    def it_starts_again(self, data: st.DataObject) -> None:
        actor = self.some(data, described=True)
        if actor is not None:
            standing = self.model.actors[actor]
            restarts = standing.restarts + 1
            self.stands(actor, standing._replace(state=RESTARTING, restarts=restarts, worker=b"", lease=0))

    @rule(data=st.data(), described=st.booleans())
    def it_ends(self, data: st.DataObject, described: bool) -> None:
        actor = self.some(data, described)
        if actor is not None:
            standing = self.model.actors[actor]
            self.ledger.actor_ended(actor)
            if standing.name:
                self.ledger.name_freed(standing.name, standing.namespace)
            self.model.ends(actor)

    @rule(data=st.data())
    def one_elsewhere_ends(self, data: st.DataObject) -> None:
        elsewhere = [key for key, actor in self.model.names.items() if actor not in self.model.actors]
        if elsewhere:
            key = data.draw(st.sampled_from(sorted(elsewhere)))
            self.ledger.name_freed(key[1], key[0])
            del self.model.names[key]

    @rule(
        data=st.data(),
        life=st.sampled_from(["nothing", "driver", "actor elsewhere", "actor"]),
        name=NAMES,
        bundles=st.integers(1, 3),
    )
    def a_group_is_made(self, data: st.DataObject, life: str, name: str, bundles: int) -> None:
        number = next(self.serial)
        lives_with: bytes | None = None
        nodes = sorted(self.model.nodes)
        if life == "actor" and self.model.actors:
            lives_with = data.draw(st.sampled_from(sorted(self.model.actors)))
        elif life != "nothing" and nodes:
            node = data.draw(st.sampled_from(nodes))
            lives_with = process_id(node, 1) if life == "driver" else actor_id(node, number)
        taken = {gang.spec["name"] for gang in self.model.groups.values()}
        spec = {"bundles": [{"CPU": 1}] * bundles, "name": "" if name in taken else name, "namespace": "x"}
        self.group_stands(
            process_id(node_id(number), 1) + bytes(8), Gang(spec, lives_with, False, [None] * bundles)
        )

    def group_stands(self, group: bytes, gang: Gang) -> None:
        self.ledger.group_stands(group, gang)
        self.model.groups[group] = gang

    @rule(data=st.data())
    @precondition(lambda self: self.model.groups)
    def a_group_is_placed(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(sorted(self.model.groups)))
        gang = self.model.groups[group]
        nodes = st.sampled_from([self.me, *sorted(self.model.nodes)])
        self.group_stands(
            group, gang._replace(created=True, nodes=[at or data.draw(nodes) for at in gang.nodes])
        )

    @rule(data=st.data())
    @precondition(lambda self: self.model.groups)
    def a_group_is_removed(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(sorted(self.model.groups)))
        self.ledger.group_removed(group)
        del self.model.groups[group]

    # -- and how it dies

    @rule()
    def the_head_is_killed(self) -> None:
        """Between two turns, or in one that nobody has heard of."""
        self.start(self.safe, self.written)

    @rule(data=st.data())
    def the_log_is_cut_anywhere(self, data: st.DataObject) -> None:
        """In the middle of a turn, too: what is left makes sense, and the next head can work with it."""
        log = self.written + self.ledger.take_records()
        self.written = log
        self.safe = self.model.copy()
        for cut in {data.draw(st.integers(0, len(log))), len(log)}:
            ledger = Ledger(log[:cut])
            ledger.check()
            before = set(ledger.facts()["actor"])
            lost = {actor for actor, _ in ledger.mend()}
            ledger.head_began(node_id(10**6))
            ledger.check(mended=True)
            assert {each.actor for each in ledger.actors()} == before - lost
            again = Ledger([*log[:cut], *ledger.take_records()])
            assert again.facts() == ledger.facts()
            assert not again.mend(), "what is mended is whole"
            assert {record.kind for record in again.take_records()} <= {"head"}

    @rule()
    def only_the_last_record_of_a_key_counts(self) -> None:
        log = self.written
        last = {(record.kind, record.key): record for record in log}
        kept = [
            record for record in log if last[record.kind, record.key] is record and record.body is not None
        ]
        assert Ledger(kept).facts() == Ledger(log).facts()

    @rule()
    def the_file_says_the_same(self) -> None:
        """Through SQLite, and back."""
        self.commit()
        path = os.path.join(self.folder, f"{next(self.files)}.sqlite")
        file = StateFile(path)
        file.write(self.written)
        file.close()
        file = StateFile(path)
        assert Ledger(file.records()).facts() == Ledger(self.written).facts()
        file.close(remove=True)
        assert not os.listdir(self.folder)

    @invariant()
    def all_is_well(self) -> None:
        self.ledger.check()
        self.safe_agrees()

    def safe_agrees(self) -> None:
        ledger = Ledger(self.written)
        ledger.mend()
        model = self.safe.copy()
        model.dies()
        model.agrees_with(ledger)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestHeads = Heads.TestCase

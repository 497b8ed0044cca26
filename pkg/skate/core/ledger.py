"""What a head must know again when it comes back: a log of records, folded into facts.

Pure. State: the facts, by kind and key, and the records that are not written down yet. A record says what is true of
its key from then on, or (None) that nothing is any more; so facts are what is left of a log when of each key the last
record is kept, and that is all that a file has to hold.

    kind    key                 body
    head    node id             its place in time: the nodes on which the head has been, this one last
    node    node id             its row in the table of nodes
    name    namespace, name     the actor that has it, and what a handle needs
    actor   actor id            a Standing: a detached actor in the directory of a head's node
    spec    actor id            how to make it
    job     job id              what workers of its program need to know
    group   group id            a Gang: a placement group

Rules:

* Only what outlives the head's node is kept: detached actors that were made there, all names, all nodes, the placement
  groups that do not live with a driver of that node.
* A name is written down before the actor that has it, and an actor's end before its name is free. So an actor that is
  kept has its name after every record, not only after each transaction.
* The next head `mend`s what it finds: what the end of the log has cut in two is dropped, and so is what died with the
  node of the last head (names of actors that were not detached, bundles of groups), groups whose drivers or actors can
  not come back, and earlier heads of which no actor is left, and no group (a node may have met none since, and ends its
  bundles where the head does not say that it is that one). It tells which actors are lost by that.

Invariants (`check`), after every record of a log: an actor is of one of the heads, and has its name if it is to have
one; a name leads to one actor, or one group; a group that was never whole is nowhere. And once it is mended: an actor
has its spec, a spec its actor and its job, a job an actor; a name is of an actor that is kept, or of a node that is; a
group has its bundles on nodes that are kept, and lives with an actor that is, or with a driver or actor of such a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.ids import ActorId, NodeId, node_of

HEAD: Final = "head"
NODE: Final = "node"
NAME: Final = "name"
ACTOR: Final = "actor"
SPEC: Final = "spec"
JOB: Final = "job"
GROUP: Final = "group"
KINDS: Final = (HEAD, NODE, NAME, ACTOR, SPEC, JOB, GROUP)


class Record(NamedTuple):
    """What is true of a key from now on; a body of None: nothing."""

    kind: str
    key: bytes
    body: Any


class Standing(NamedTuple):
    """How a detached actor stands."""

    name: str
    namespace: str
    state: int  #: of core.actors
    restarts: int
    restarts_left: int
    worker: bytes  #: the process that it is in; empty: none
    lease: int
    allocation: Any


class Gang(NamedTuple):
    """How a placement group stands."""

    spec: Mapping[str, Any]  #: what its maker says of it
    lives_with: bytes | None  #: the driver or detached actor with which it ends; None: it is detached
    created: bool  #: it was whole once
    nodes: Sequence[NodeId | None]  #: where each bundle is


class Kept(NamedTuple):
    """A detached actor as the next head finds it."""

    actor: ActorId
    standing: Standing
    about: Any
    spec: Any


class Ledger:
    """The facts of one cluster's head."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._facts: dict[str, dict[bytes, Any]] = {kind: {} for kind in KINDS}
        self._unwritten: list[Record] = []
        for record in records:
            self._apply(record)

    @property
    def unwritten(self) -> bool:
        return bool(self._unwritten)

    def take_records(self) -> list[Record]:
        """What is to be written down, all of it or nothing. From then on it counts as written."""
        records, self._unwritten = self._unwritten, []
        return records

    # ------------------------------------------------------------------------------------------------ what it tells

    def heads(self) -> list[NodeId]:
        """The nodes on which the head has been, the latest last."""
        return [NodeId(node) for node, _ in sorted(self._facts[HEAD].items(), key=lambda fact: fact[1])]

    def nodes(self) -> list[Any]:
        """The rows of the nodes that lived."""
        return list(self._facts[NODE].values())

    def names(self) -> list[tuple[ActorId, str, str, Any]]:
        """(actor, name, namespace, about) of each name."""
        return [(ActorId(actor), *_name_of(key), about) for key, (actor, about) in self._facts[NAME].items()]

    def jobs(self) -> list[Mapping[str, Any]]:
        return list(self._facts[JOB].values())

    def actors(self) -> list[Kept]:
        """The detached actors, once what was found is mended."""
        kept = []
        for actor, body in self._facts[ACTOR].items():
            standing = Standing(*body)
            held = self._facts[NAME].get(_key_of(standing.namespace, standing.name))
            about = held[1] if standing.name and held is not None else None
            kept.append(Kept(ActorId(actor), standing, about, self._facts[SPEC][actor]))  # type: ignore[arg-type]
        return kept

    def groups(self) -> list[tuple[bytes, Gang]]:
        """The placement groups by their ids, once what was found is mended."""
        return [(group, Gang(*body)) for group, body in self._facts[GROUP].items()]

    # ------------------------------------------------------------------------------------------------------- events

    def head_began(self, node: NodeId) -> None:
        """The head is on this node from now on."""
        self._put(HEAD, node, max(self._facts[HEAD].values(), default=0) + 1)

    def lists(self, node: NodeId) -> bool:
        return node in self._facts[NODE]

    def node_listed(self, node: NodeId, row: Any) -> None:
        """`row` is opaque here. The first counts: what a node has free changes all the time, and is of no use later."""
        if not self.lists(node):
            self._put(NODE, node, row)

    def node_died(self, node: NodeId) -> None:
        self._drop(NODE, node)

    def name_taken(self, actor: ActorId, name: str, namespace: str, about: Any) -> None:
        self._put(NAME, _key_of(namespace, name), (bytes(actor), about))

    def name_freed(self, name: str, namespace: str) -> None:
        self._drop(NAME, _key_of(namespace, name))

    def actor_stands(self, actor: ActorId, standing: Standing) -> None:
        """A detached actor of this node was made, or something about it has changed."""
        self._put(ACTOR, actor, tuple(standing))

    def actor_described(self, actor: ActorId, spec: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """`spec` says how it is made, `job` what its workers need to know."""
        if actor not in self._facts[SPEC]:  # it never changes
            self._put(JOB, job["id"].encode(), job)
            self._put(SPEC, actor, spec)

    def actor_ended(self, actor: ActorId) -> None:
        self._drop(ACTOR, actor)
        spec = self._facts[SPEC].get(actor)
        if spec is not None:
            self._drop(SPEC, actor)
            job = _job_of(spec)
            if all(_job_of(other) != job for other in self._facts[SPEC].values()):
                self._drop(JOB, job)

    def group_stands(self, group: bytes, gang: Gang) -> None:
        """A placement group was made, or something about it has changed."""
        self._put(GROUP, group, tuple(gang))

    def group_removed(self, group: bytes) -> None:
        self._drop(GROUP, group)

    def mend(self) -> list[tuple[ActorId, Standing]]:
        """Another head takes this up: drops what cannot go on without the last one; gives the actors among that."""
        heads = self._facts[HEAD]
        specs, actors = self._facts[SPEC], self._facts[ACTOR]
        lost = [
            (ActorId(actor), Standing(*body))  # type: ignore[arg-type]
            for actor, body in actors.items()
            if actor not in specs or _job_of(specs[actor]) not in self._facts[JOB]
        ]
        for actor, _ in lost:
            self._drop(ACTOR, actor)
        for spec in [actor for actor in specs if actor not in actors]:
            self._drop(SPEC, spec)
        needed = {_job_of(spec) for spec in specs.values()}
        for job in [job for job in self._facts[JOB] if job not in needed]:
            self._drop(JOB, job)
        for head in heads:
            self._drop(NODE, head)
        for key, (holder, _) in list(self._facts[NAME].items()):
            node = node_of(holder)
            if holder not in actors if node in heads else node not in self._facts[NODE]:
                self._drop(NAME, key)
        self._mend_groups()
        needed_heads = {node_of(actor) for actor in actors}
        for head in self.heads()[:-1]:
            if head not in needed_heads and not self._facts[GROUP]:
                self._drop(HEAD, head)
        return lost

    def _mend_groups(self) -> None:
        nodes = self._facts[NODE]
        for group, gang in self.groups():
            if not self._may_live(gang.lives_with):
                self.group_removed(group)
            elif any(node is not None and node not in nodes for node in gang.nodes):
                there = [node if node in nodes else None for node in gang.nodes]
                self.group_stands(group, gang._replace(nodes=there))

    def _may_live(self, lives_with: bytes | None) -> bool:
        if lives_with is None:
            return True
        node = node_of(lives_with)
        return lives_with in self._facts[ACTOR] if node in self._facts[HEAD] else node in self._facts[NODE]

    # -------------------------------------------------------------------------------------------------------- rules

    def _put(self, kind: str, key: bytes, body: Any) -> None:
        if self._facts[kind].get(key) != body:
            self._note(Record(kind, bytes(key), body))

    def _drop(self, kind: str, key: bytes) -> None:
        if key in self._facts[kind]:
            self._note(Record(kind, bytes(key), None))

    def _note(self, record: Record) -> None:
        self._apply(record)
        self._unwritten.append(record)

    def _apply(self, record: Record) -> None:
        """ValueError for a kind that there is not."""
        if record.kind not in self._facts:
            raise ValueError(f"a record of kind {record.kind!r:.20}")
        if record.body is None:
            self._facts[record.kind].pop(record.key, None)
        else:
            self._facts[record.kind][record.key] = record.body

    def facts(self) -> dict[str, dict[bytes, Any]]:
        """All of them, for comparison."""
        return {kind: dict(facts) for kind, facts in self._facts.items()}

    def check(self, *, mended: bool = False) -> None:
        """Raises AssertionError where an invariant does not hold."""
        heads, names, actors = self._facts[HEAD], self._facts[NAME], self._facts[ACTOR]
        for actor, body in actors.items():
            standing = Standing(*body)
            if node_of(actor) not in heads:
                raise AssertionError(f"actor {actor.hex()} is of no head")
            if standing.name and names.get(_key_of(standing.namespace, standing.name), (b"",))[0] != actor:
                raise AssertionError(f"actor {actor.hex()} has lost its name {standing.name}")
        holders = [holder for holder, _ in names.values()]
        if len(set(holders)) != len(holders):
            raise AssertionError(f"an actor has two names: {names}")
        groups = self.groups()
        called = [(gang.spec["namespace"], gang.spec["name"]) for _, gang in groups if gang.spec["name"]]
        if len(set(called)) != len(called):
            raise AssertionError(f"two groups have one name: {called}")
        for group, gang in groups:
            if len(gang.nodes) != len(gang.spec["bundles"]) or (not gang.created and any(gang.nodes)):
                raise AssertionError(f"group {group.hex()} is {gang}")
        if not mended:
            return
        specs, jobs = self._facts[SPEC], self._facts[JOB]
        if specs.keys() != actors.keys():
            raise AssertionError(f"{len(specs)} specs, {len(actors)} actors")
        if {_job_of(spec) for spec in specs.values()} != jobs.keys():
            raise AssertionError(f"the jobs are {list(jobs)}")
        for holder in holders:
            if holder not in actors and (
                node_of(holder) in heads or node_of(holder) not in self._facts[NODE]
            ):
                raise AssertionError(f"a name is of actor {holder.hex()}, which nobody has")
        for group, gang in groups:
            if not self._may_live(gang.lives_with):
                raise AssertionError(f"group {group.hex()} lives with what is gone")
            if any(node is not None and node not in self._facts[NODE] for node in gang.nodes):
                raise AssertionError(f"group {group.hex()} is on nodes that are gone: {gang.nodes}")


def _key_of(namespace: str, name: str) -> bytes:
    space = namespace.encode()
    return len(space).to_bytes(4, "big") + space + name.encode()


def _name_of(key: bytes) -> tuple[str, str]:
    """(name, namespace)."""
    end = 4 + int.from_bytes(key[:4], "big")
    return key[end:].decode(), key[4:end].decode()


def _job_of(spec: Mapping[str, Any]) -> bytes:
    """The id of its job, as a key: what its workers are of comes first in their environment."""
    job: str = spec["environment"][0]
    return job.encode()

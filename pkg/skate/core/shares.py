"""How many leases of each class are asked for on which node, for the owners of one node.

Pure. State: what each owner of this node wants, how much of it every node was asked for, and how that stands there; the
nodes as they were told of last, less what they were asked for since. Events: wanted, stands, owner_left, node_died,
look_again, group_changed, group_ended, actor_placed, housed. They only note what happened; `decide` then splits what
waits anew, and says what changes. Effects: Ask, Refuse.

Rules:

* What may wait is split one lease after the other (in steps, where there are many), as core.policies says; each takes
  its part of what the node was known to have free.
* What a node that was asked before has room for stays there. What has room nowhere stays where it is, if it can run
  there at all; what is new waits on this node if it can run here, else on a node that it can run on. It is looked at
  again when the nodes have changed. An actor that holds nothing once it lives (`roams`) waits on any node.
* What can run nowhere waits on this node, whose admission warns of it, until a node joins.
* A node says how what it was asked for stands: how many leases wait for resources, how many have theirs and wait for a
  worker, and whether any have workers. Those that have resources stay. What it says of an older request is not heard.
  Once there is none of a class, what was taken from the node's free amounts for it is given back.
* Where tasks have large arguments, the node with room that has most bytes of them is taken; what has room nowhere waits
  where most are. Such a split goes when nothing is wanted of it.
* An actor that waits on another node is asked for elsewhere only when that node has said that it let go of it: else it
  might have two workers.
* What is to run in a placement group waits on this node while that is nowhere; else on a node that has a bundle of it.

Invariant (`check`): no node has a share that it was not asked for, none is asked for less than nothing, what was
wanted and is not reserved is asked for, and what is in a group is found by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from skate.core.node_table import NodeTable, NodeView
from skate.core.policies import Choice, NodeChooser, Where, may_run
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ProcessId

#: steps in which what is wanted is split over nodes, at most
STEPS: Final = 200
_ANYWHERE: Final = Where()

Key = tuple[ProcessId, int]


class Ask(NamedTuple):
    """Effect: the node is to be asked for so many leases; that replaces what it was asked for before."""

    node: NodeId
    split: Split
    wanted: int
    #: says which request an answer is about
    number: int
    #: that it can run on the node, as far as the node's name and labels go
    allowed: bool


class Refuse(NamedTuple):
    """Effect: what is asked for can never be met."""

    split: Split
    why: str


Effect = Ask | Refuse


class Share:
    """What one node was asked for."""

    __slots__ = ("allowed", "held", "number", "reserved", "waiting")

    def __init__(self) -> None:
        self.number = 0
        #: whether it was said to be able to run there
        self.allowed = False
        #: leases that wait there for resources
        self.waiting = 0
        #: leases that have theirs, and no worker yet
        self.reserved = 0
        #: some have workers
        self.held = False


class Split:
    """What one owner wants of one class, and who was asked for it."""

    __slots__ = (
        "class_id",
        "demand",
        "details",
        "for_actor",
        "leaves",
        "lost",
        "near",
        "owner",
        "roams",
        "shares",
        "taken",
        "wanted",
        "where",
    )

    def __init__(
        self, owner: ProcessId, class_id: int, demand: ResourceSet, where: Where, for_actor: bool
    ) -> None:
        self.owner = owner
        self.class_id = class_id
        self.demand = demand
        self.where = where
        self.for_actor = for_actor
        #: it is an actor that holds nothing once it lives
        self.roams = False
        #: node -> bytes that it has of its tasks' large arguments; None: they have none
        self.near: Mapping[NodeId, int] | None = None
        #: what else the nodes need to know; opaque here
        self.details: Any = None
        self.shares: dict[NodeId, Share] = {}
        #: node -> its view, and for how many leases that was told that they take from it
        self.taken: dict[NodeId, tuple[NodeView, int]] = {}
        #: what the owner has just said that it wants, those on their way among it; None: it is split already
        self.wanted: int | None = None
        #: what nodes were asked for that have died since
        self.lost = 0
        #: of an actor, the node that was asked to let go of it, and has not said that it did
        self.leaves: NodeId | None = None

    def reserved(self) -> int:
        return sum(share.reserved for share in self.shares.values())

    def waiting(self) -> int:
        return sum(share.waiting for share in self.shares.values())


class Shares:
    """The splits of all owners of one node."""

    def __init__(self, me: NodeId, chooser: NodeChooser) -> None:
        self._me = me
        self._chooser = chooser
        self.splits: dict[Key, Split] = {}
        self._to_split: dict[Key, Split] = {}
        #: placement group -> what is to run in it
        self._in_group: dict[str, dict[Key, Split]] = {}
        #: number of the latest request of any
        self._number = 0

    # ---------------------------------------------------------------------------------------------------- events

    def wanted(
        self,
        owner: ProcessId,
        class_id: int,
        demand: ResourceSet,
        where: Where | None,
        wanted: int,
        details: Any,
        *,
        for_actor: bool = False,
        roams: bool = False,
        near: Mapping[NodeId, int] | None = None,
    ) -> None:
        """How many leases of the class the owner could use, beyond those that it knows of. Replaces what it said.

        `near`, `roams`: see Split.
        """
        split = self._split_of(owner, class_id, demand, where, for_actor=for_actor)
        split.roams = roams
        split.details = details
        split.leaves = None
        split.near = near
        split.wanted = wanted
        self._to_split[owner, class_id] = split

    def housed(self, actor: ProcessId, demand: ResourceSet, where: Where, node: NodeId) -> None:
        """An actor has a worker on the node, for which the node of another head has asked."""
        split = self._split_of(actor, 0, demand, where, for_actor=True)
        self._number += 1
        share = split.shares[node] = Share()
        share.number, share.held = self._number, True

    def _split_of(
        self, owner: ProcessId, class_id: int, demand: ResourceSet, where: Where | None, *, for_actor: bool
    ) -> Split:
        key = owner, class_id
        split = self.splits.get(key)
        if split is None:
            split = self.splits[key] = Split(owner, class_id, demand, where or _ANYWHERE, for_actor)
            if demand.group is not None:
                self._in_group.setdefault(demand.group, {})[key] = split
        return split

    def stands(
        self,
        node: NodeId,
        owner: ProcessId,
        class_id: int,
        number: int,
        waiting: int,
        reserved: int,
        held: bool = False,
    ) -> None:
        """How what a node was asked for stands there."""
        split = self.splits.get((owner, class_id))
        share = None if split is None else split.shares.get(node)
        if split is not None and share is not None and share.number == number:
            share.waiting, share.reserved, share.held = waiting, reserved, held
            if not (waiting or reserved or held) and node in split.taken:
                view, taken = split.taken.pop(node)
                view.give_back(split.demand, taken)
            if split.leaves == node:
                split.leaves = None
                if not waiting and not reserved:
                    split.lost += 1
                    self._to_split[owner, class_id] = split
            self._forget_if_over(split)

    def over_here(self, owner: ProcessId, class_id: int) -> None:
        """Of what the owner wants, nothing waits on this node any more, and nothing has a worker here."""
        split = self.splits.get((owner, class_id))
        mine = None if split is None else split.shares.get(self._me)
        if split is not None and mine is not None:
            mine.waiting = mine.reserved = 0
            self._forget_if_over(split)

    def actor_placed(self, actor: ProcessId) -> None:
        """A node has a worker for the actor."""
        split = self.splits.get((actor, 0))
        if split is not None:
            split.leaves = None

    def _forget_if_over(self, split: Split) -> None:
        """A split of tasks is over when nothing of it waits anywhere. (That of an actor lives with it.)"""
        key = split.owner, split.class_id
        if split.for_actor or key in self._to_split or split.lost or self.splits.get(key) is not split:
            return
        brief = split.near is not None
        if not any(
            share.waiting or ((share.reserved or share.held) and not (brief and node == self._me))
            for node, share in split.shares.items()
        ):
            self._drop(key)

    def owner_left(self, owner: ProcessId) -> list[NodeId]:
        """An owner is gone, or an actor; gives the nodes that were asked for anything in its name."""
        nodes: dict[NodeId, None] = {}
        for key in [key for key in self.splits if key[0] == owner]:
            nodes |= dict.fromkeys(self._drop(key).shares)
        return list(nodes)

    def _drop(self, key: Key) -> Split:
        split = self.splits.pop(key)
        self._to_split.pop(key, None)
        group = split.demand.group
        if group is not None:
            del self._in_group[group][key]
            if not self._in_group[group]:
                del self._in_group[group]
        return split

    def node_died(self, node: NodeId) -> None:
        """What was asked for there is asked for elsewhere."""
        for key, split in self.splits.items():
            share = split.shares.pop(node, None)
            lost = 0 if share is None else share.waiting + share.reserved
            if split.leaves == node:
                split.leaves = None
                lost = 1
            if lost:
                split.lost += lost
                self._to_split[key] = split

    def look_again(self) -> None:
        """The nodes have changed: what waits may have room elsewhere."""
        for key, split in self.splits.items():
            if split.waiting():
                self._to_split[key] = split

    def group_changed(self, group: str) -> None:
        """Bundles of the group have come or gone: what waits for them may have room elsewhere."""
        for key, split in self._in_group.get(group, {}).items():
            if split.waiting():
                self._to_split[key] = split

    def group_ended(self, group: str) -> list[Split]:
        """The group is removed: nothing can run in it any more. Gives what was to, and whom that was asked of."""
        return [self._drop(key) for key in list(self._in_group.get(group, ()))]

    @property
    def undecided(self) -> bool:
        return bool(self._to_split)

    def groups_to_split(self) -> Iterator[str]:
        """The placement groups in which some of what is undecided is to run; one may come twice."""
        return (split.demand.group for split in self._to_split.values() if split.demand.group is not None)

    # ------------------------------------------------------------------------------------------------- decisions

    def decide(
        self,
        views: NodeTable,
        chance: Callable[[], float],
        here: Callable[[Split], tuple[int, int]],
    ) -> list[Effect]:
        """Splits what there is to split. `views`: the living nodes; what is taken of them is noted there.

        `here` gives (waiting, reserved) of a split on this node.
        """
        effects: list[Effect] = []
        todo, self._to_split = self._to_split, {}
        for key, split in todo.items():
            mine = split.shares.get(self._me)
            if mine is not None:
                mine.waiting, mine.reserved = here(split)
            self._split(key, split, views, chance, effects)
        return effects

    def _split(
        self,
        key: Key,
        split: Split,
        views: NodeTable,
        chance: Callable[[], float],
        effects: list[Effect],
    ) -> None:
        if split.for_actor and self._may_move(split, views, chance, effects):
            return
        said = split.wanted is not None
        if split.wanted is None:
            left = split.waiting() + split.lost
        else:
            left = max(0, split.wanted - split.reserved())
        split.wanted, split.lost = None, 0
        target: dict[NodeId, int] = {}
        refusal = ""
        alone = len(views) == 1 and self._me in views and not split.where.chooses
        if alone:
            if left:
                target[self._me] = left
        else:
            refusal = self._place(split, left, views, chance, target)
        if refusal:
            effects.append(Refuse(split, refusal))
            target.clear()
        for node in {**split.shares, **target}:
            wanted = target.get(node, 0)
            share = split.shares.get(node)
            if share is None:
                share = split.shares[node] = Share()
            elif share.waiting == wanted and node != self._me:
                continue
            allowed = alone or self._may_run(split, node, views)
            if share.number and share.waiting == wanted and share.allowed == allowed and not said:
                continue  # (this node hears how deep the owner is, and whether it can run here now)
            self._number += 1
            share.number, share.waiting, share.allowed = self._number, wanted, allowed
            effects.append(Ask(node, split, wanted, self._number, allowed))
        if refusal and not split.reserved():
            self._drop(key)
        else:
            self._forget_if_over(split)

    def _may_move(
        self,
        split: Split,
        views: NodeTable,
        chance: Callable[[], float],
        effects: list[Effect],
    ) -> bool:
        """Whether an actor waits on another node; that is to let go of it where there is room elsewhere."""
        if split.leaves is not None:
            return True
        for node, share in split.shares.items():
            if share.waiting and node != self._me:
                view = views.get(node)
                choice = self._choose(views, split, chance())
                if choice.available and choice.node != node and not (view and view.fits(split.demand)):
                    self._number += 1
                    share.number, share.waiting = self._number, 0
                    split.leaves = node
                    effects.append(Ask(node, split, 0, self._number, True))
                return True
        return False

    def _place(
        self,
        split: Split,
        left: int,
        views: NodeTable,
        chance: Callable[[], float],
        target: dict[NodeId, int],
    ) -> str:
        """Fills `target`; or gives why that can never be."""
        demand = split.demand
        step = -(-left // STEPS)

        def take(node: NodeId, most: int) -> int:
            """Puts as many on the node as it has room for."""
            view = views[node]
            number = 0
            while number < most and view.fits(demand):
                number += 1
                view.take(demand)
            if number:
                target[node] = target.get(node, 0) + number
                before = split.taken.get(node)
                more = before[1] if before is not None and before[0] is view else 0
                split.taken[node] = (view, number + more)
            return number

        for node, share in split.shares.items():
            if left and share.waiting and node in views and self._may_run(split, node, views):
                left -= take(node, min(left, share.waiting))
        choice: Choice | None = None
        while left:
            choice = self._choose(views, split, chance())
            if choice.never:
                return choice.never
            if choice.node is None or not choice.available:
                break
            left -= take(choice.node, min(left, step))
        if not left:
            return ""
        for node, share in split.shares.items():  # what has room nowhere stays where it is
            stays = min(left, share.waiting - target.get(node, 0))
            if stays > 0 and node in views and self._may_run(split, node, views):
                target[node] = target.get(node, 0) + stays
                left -= stays
        if left:
            waits = self._me
            fits = [node for node in split.near or () if self._may_run(split, node, views)]
            if split.near and fits:
                waits = max(fits, key=split.near.__getitem__)
            elif (
                choice is not None
                and choice.node is not None
                and (split.roams or not self._may_run(split, self._me, views))
            ):
                waits = choice.node
            target[waits] = target.get(waits, 0) + left
        return ""

    def _choose(self, views: NodeTable, split: Split, chance: float) -> Choice:
        return self._chooser.choose(
            views,
            split.demand,
            split.where,
            local=self._me,
            chance=chance,
            local_bytes=split.near,
            roams=split.roams,
        )

    def _may_run(self, split: Split, node: NodeId, views: NodeTable) -> bool:
        """Whether it could run on the node, were that idle."""
        view = views.find(node)
        return view is not None and may_run(views, view, split.demand, split.where)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        in_group = {key: split for splits in self._in_group.values() for key, split in splits.items()}
        if in_group != {key: split for key, split in self.splits.items() if split.demand.group is not None}:
            raise AssertionError(f"{in_group} are in groups, of {self.splits}")
        for key, split in self.splits.items():
            if (split.owner, split.class_id) != key:
                raise AssertionError(f"{split.owner.hex()}'s split {split.class_id} stands under {key}")
            if split.leaves is not None and (not split.for_actor or split.lost or split.waiting()):
                raise AssertionError(f"{split.owner.hex()} leaves {split.leaves.hex()}, and waits elsewhere")
            if split.wanted is not None and key not in self._to_split:
                raise AssertionError(f"what {split.owner.hex()} wants is never split")
            if split.lost and key not in self._to_split:
                raise AssertionError(f"what {split.owner.hex()} has lost is never split")
            for share in split.shares.values():
                if share.waiting < 0 or share.reserved < 0 or not share.number:
                    raise AssertionError(f"a share of {share.waiting} and {share.reserved}")

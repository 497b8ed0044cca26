"""Who has still to speak about a death: processes that may have refs from the dead one, and have not claimed them yet.

Pure; in each node manager. Whoever keeps something for the heirs of a dead process of its node asks the manager there.
A *round* asks all processes of the node, and the managers of the nodes that the dead one was in touch with, which ask
theirs in a round of their own. Each answers once the owners have heard its claims; when all have, so has whoever asked.
What is asked follows the notice of the death on the same link.

Who dies before it has spoken may have handed on what it had from the dead: then the round begins anew, with its heirs
among those that are asked. Nothing ends a round but answers and deaths: who is stopped holds it up, no time does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from skate.core.machine import Machine
from skate.ids import NodeId, ProcessId, manager_of

#: dead processes whose acquaintances are remembered; of others, all nodes are asked
DEAD_REMEMBERED: Final = 1024


class AskToSpeak(NamedTuple):
    """Effect: send Speak(number, dead) to a process of this node, or to the manager of another."""

    to: ProcessId
    number: int
    dead: ProcessId


class TellSettled(NamedTuple):
    """Effect: all have spoken of `dead`. A manager is answered by the `number` of its question, a process without."""

    to: ProcessId
    dead: ProcessId
    number: int | None


class Round:
    """One question."""

    __slots__ = ("askers", "dead", "waiting")

    def __init__(self, dead: ProcessId, asker: ProcessId, number: int | None) -> None:
        self.dead = dead
        self.askers: list[tuple[ProcessId, int | None]] = [(asker, number)]
        #: who has yet to speak
        self.waiting: set[ProcessId] = set()


class Settling(Machine):
    """The rounds of one node manager."""

    def __init__(self) -> None:
        super().__init__()
        #: number of what was asked last -> the round
        self.rounds: dict[int, Round] = {}
        self._number = 0
        #: dead processes of this node, the latest last -> the managers of the nodes that they were in touch with
        self._acquaintances: dict[ProcessId, list[ProcessId]] = {}

    def asked(
        self,
        asker: ProcessId,
        dead: ProcessId,
        processes: Iterable[ProcessId],
        others: Iterable[ProcessId],
        number: int | None = None,
    ) -> None:
        """Somebody wants to hear when all have spoken: the `processes` of this node, and the managers of `others`.

        A manager that asks (by `number`) asks about the processes here alone.
        """
        if number is None:
            for each in self.rounds.values():
                if each.dead == dead and each.askers[0][1] is None:
                    each.askers.append((asker, None))
                    return
        self._ask(Round(dead, asker, number), [*processes, *others])

    def known_to(self, dead: ProcessId) -> list[ProcessId] | None:
        """The managers of nodes that a dead process of this node, or one that has died since, was in touch with."""
        if dead not in self._acquaintances:
            return None
        found = list(self._acquaintances)
        since = found[found.index(dead) :]
        return sorted({node for process in since for node in self._acquaintances[process]})

    def _ask(self, about: Round, whom: Iterable[ProcessId]) -> None:
        self._number += 1
        self.rounds[self._number] = about
        about.waiting.update(whom)
        self._effects += [AskToSpeak(each, self._number, about.dead) for each in sorted(about.waiting)]
        self._end_if_settled(self._number)

    def spoken(self, who: ProcessId, number: int) -> None:
        """A process of this node, or the manager of another, has spoken."""
        about = self.rounds.get(number)
        if about is not None:
            about.waiting.discard(who)
            self._end_if_settled(number)

    def _end_if_settled(self, number: int) -> None:
        about = self.rounds[number]
        if not about.waiting:
            del self.rounds[number]
            self._effects += [TellSettled(to, about.dead, asked) for to, asked in about.askers]

    def process_died(
        self, process: ProcessId, processes: Iterable[ProcessId], acquaintances: Iterable[NodeId]
    ) -> None:
        """A process of this node is dead, and all `processes` here, and on the nodes that it knew, were told."""
        known = self._acquaintances[process] = [manager_of(node) for node in acquaintances]
        if len(self._acquaintances) > DEAD_REMEMBERED:
            del self._acquaintances[next(iter(self._acquaintances))]
        for number, about in list(self.rounds.items()):
            about.askers = [(asker, asked) for asker, asked in about.askers if asker != process]
            if not about.askers:
                del self.rounds[number]
            elif process in about.waiting:
                del self.rounds[number]
                about.waiting.discard(process)
                self._ask(about, [*processes, *known])

    def node_died(self, node: NodeId) -> None:
        """Another node is dead: nobody there speaks any more, in rounds that are to come either."""
        for known in self._acquaintances.values():
            if manager_of(node) in known:
                known.remove(manager_of(node))
        for number, about in list(self.rounds.items()):
            about.askers = [(asker, asked) for asker, asked in about.askers if not asker.startswith(node)]
            about.waiting = {each for each in about.waiting if not each.startswith(node)}
            if not about.askers:
                del self.rounds[number]
            else:
                self._end_if_settled(number)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for number, about in self.rounds.items():
            if not about.waiting or not about.askers:
                raise AssertionError(f"round {number} waits for {about.waiting}, asked by {about.askers}")

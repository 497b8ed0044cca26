"""What the machines of core have in common: they are told events, and leave effects for whoever runs them to carry out.

State: the effects that nobody has taken yet. Machines of one process may share a list, so that what they decide is
carried out in the order in which it was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Machine:
    """A machine with effects."""

    def __init__(self, effects: list[Any] | None = None) -> None:
        self._effects: list[Any] = [] if effects is None else effects

    def take_effects(self) -> Sequence[Any]:
        """What is to be done, in order. From then on it counts as done."""
        effects = self._effects
        if not effects:
            return ()
        taken = effects[:]
        effects.clear()
        return taken

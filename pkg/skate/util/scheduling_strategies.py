"""On which nodes tasks and actors run: what `scheduling_strategy=` takes besides "DEFAULT" and "SPREAD".

Owns nothing: the objects only hold what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from skate.util.placement_group import PlacementGroup

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]


class _Plain:
    """Compares and prints by what it holds."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )


class PlacementGroupSchedulingStrategy(_Plain):
    """In a placement group.

    placement_group: "default" for that of the maker, where it captures its children; None for none, also then.
    placement_group_bundle_index: the bundle; -1 for any that has room.
    placement_group_capture_child_tasks: whether what the task or actor starts runs in the group, too. None: as of its
    maker.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | Literal["default"] | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group not in ("default", None) and not any(
            base.__name__ == "PlacementGroup" for base in type(placement_group).__mro__
        ):
            raise TypeError(
                f'placement_group must be a PlacementGroup, "default" or None, got {placement_group!r}'
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy(_Plain):
    """On one node, for as long as it lives and could run it; even if it is full now.

    node_id: in hexadecimal, as get_runtime_context().get_node_id() and nodes() give it.
    soft: elsewhere where that node is gone or too small; if False, it fails with TaskUnschedulableError or
    ActorUnschedulableError then.
    """

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        """Raises ValueError for what is no node's id."""
        text = node_id if isinstance(node_id, str) else node_id.hex()
        try:
            known = any(bytes.fromhex(text))
        except ValueError:
            known = False
        if not known:
            raise ValueError(
                f"Invalid node_id {text!r}: it must be a node's id in hexadecimal. skate.nodes() lists the nodes, "
                "get_runtime_context().get_node_id() tells this one."
            )
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable needs soft=True: it may run elsewhere then")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable needs soft=False: else it runs elsewhere")
        self.node_id = text
        self.soft = bool(soft)
        self._spill_on_unavailable = bool(_spill_on_unavailable)
        self._fail_on_unavailable = bool(_fail_on_unavailable)


class _OneOf(_Plain):
    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        if not values:
            raise ValueError(f'{name} takes at least one value: {name}("value1", "value2")')
        for value in values:
            if not isinstance(value, str):
                raise ValueError(
                    f"the values of {name} must be str, got {value!r} of type {type(value).__name__}"
                )
        self.values = list(values)


class In(_OneOf):
    """The label has one of these values."""


class NotIn(_OneOf):
    """The label has none of these values, or is missing."""


class Exists(_Plain):
    """The node has the label."""


class DoesNotExist(_Plain):
    """The node has no such label."""


class NodeLabelSchedulingStrategy(_Plain):
    """On nodes with certain labels: NodeLabelSchedulingStrategy(hard={"region": In("eu")}, soft={"gpu": Exists()}).

    hard: what must hold; where it holds for no node, the task waits for one that joins. soft: what should hold.
    """

    def __init__(self, hard: Mapping[str, Any] | None, *, soft: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError for what is no dict of label -> In, NotIn, Exists, DoesNotExist, and if both are empty."""
        self.hard = _checked("hard", hard)
        self.soft = _checked("soft", soft)
        if not self.hard and not self.soft:
            raise ValueError("hard and soft of NodeLabelSchedulingStrategy cannot both be empty")


def _checked(name: str, expressions: Mapping[str, Any] | None) -> dict[str, Any]:
    if expressions is None:
        return {}
    if not isinstance(expressions, Mapping):
        raise ValueError(f'{name} must be a dict, {{"key1": In("value1")}}, got {expressions!r}')
    for label, operator in expressions.items():
        if not isinstance(label, str):
            raise ValueError(f"a label in {name} must be a str, got {label!r}")
        if not isinstance(operator, (In, NotIn, Exists, DoesNotExist)):
            raise ValueError(
                f"{name}[{label!r}] must be an In, NotIn, Exists or DoesNotExist, got {operator!r}"
            )
    return dict(expressions)

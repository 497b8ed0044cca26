"""Where, and with which variables, a task or actor is to run: by its options, and those of its maker. No state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from skate.core.labels import DOES_NOT_EXIST, EXISTS, IN, NOT_IN, Expressions, parse_selector
from skate.core.policies import LABELS, NODE, SPREAD, Where
from skate.core.resources import ResourceSet
from skate.options import ActorOptions, TaskOptions, check_variables_together
from skate.runtime import current
from skate.runtime.runtime import Runtime

_OPERATORS = {"In": IN, "NotIn": NOT_IN, "Exists": EXISTS, "DoesNotExist": DOES_NOT_EXIST}


class Schedule(NamedTuple):
    """What the node is asked for."""

    demand: ResourceSet
    #: core.policies.Where as it travels; None: anywhere
    where: tuple[Any, ...] | None


def schedule_of(
    runtime: Runtime,
    options: TaskOptions | ActorOptions,
    request: ResourceSet,
    subject: str,
    *,
    held: ResourceSet | None = None,
) -> Schedule:
    """How a task or actor with these options is asked for here and now.

    `request` is what placing it needs, `held` what it keeps (None: the same); `subject` names it. A child of what
    captures its tasks goes to the same placement group, unless it says where it goes. Blocks, where a group's bundles
    are not known here. Raises ValueError for a bundle that the group does not have, and for what fits into none.
    """
    strategy = options.scheduling_strategy
    selectors = _selectors(options)
    if strategy is not None and type(strategy).__name__ != "PlacementGroupSchedulingStrategy":
        return Schedule(request, _where(strategy, selectors))
    chosen = options if strategy is None else strategy
    group, index = chosen.placement_group, chosen.placement_group_bundle_index
    captures = chosen.placement_group_capture_child_tasks
    if captures is None:
        captures = runtime.captured is not None
    inherited = False
    if group == "default":
        group = None
        if captures and runtime.captured is not None:
            inherited = True
    group_hex = runtime.captured if inherited else None
    if group is not None and not group.is_empty:
        group_hex = group.id.hex()
    if group_hex is None:
        if index != -1:
            raise ValueError(f"{subject}: without a placement group the bundle index must be -1, got {index}")
        return Schedule(request, _where(None, selectors))
    bundles = group.bundle_specs if not inherited else runtime.groups.bundles(bytes.fromhex(group_hex))
    _check_bundle(subject, index, bundles or [], request if held is None else held, request)
    where = Where(selectors=selectors, captures=captures)
    return Schedule(request.in_group(group_hex, index), None if where == Where() else tuple(where))


def variables_of(options: TaskOptions | ActorOptions) -> tuple[tuple[str, str], ...] | None:
    """(name, value) of the env_vars of a task or actor with these options that is started here; None: there are none.

    They are those of whoever starts it, with its own merged over them. ValueError for too many.
    """
    assert current.facts is not None
    own = (options.runtime_env or {}).get("env_vars")
    if not own:
        return current.facts.variables or None
    merged = dict(current.facts.variables) | own
    check_variables_together(merged)
    return tuple(merged.items())


def _check_bundle(
    subject: str, index: int, bundles: list[dict[str, float]], held: ResourceSet, request: ResourceSet
) -> None:
    if not -1 <= index < len(bundles):
        raise ValueError(
            f"{subject}: placement group bundle index {index} is invalid. The group has {len(bundles)} bundles, so "
            f"0 to {len(bundles) - 1} are valid, and -1 for any."
        )
    sets = [ResourceSet.from_floats(bundle) for bundle in (bundles if index < 0 else [bundles[index]])]
    if not any(_fits(held, bundle) for bundle in sets):
        raise ValueError(
            f"Cannot schedule {subject} with the placement group because the resource request {held} cannot fit into "
            f"any bundles for the placement group, {bundles}."
        )
    if not any(_fits(request, bundle) for bundle in sets):
        raise ValueError(
            f"Cannot schedule {subject} with the placement group because the actor requires "
            f"{request.to_dict().get('CPU', 0)} CPU for creation, but it cannot fit into any bundles for the placement "
            f"group, {bundles}. Give the group a bundle with CPUs, or the actor num_cpus=0."
        )


def _fits(request: ResourceSet, bundle: ResourceSet) -> bool:
    return all(bundle.get(name) >= units for name, units in request.items())


def _selectors(options: TaskOptions | ActorOptions) -> tuple[Expressions, ...]:
    """What nodes' labels must meet, to be tried in turn."""
    choices: list[Mapping[str, str] | None] = [options.label_selector]
    choices += [choice["label_selector"] for choice in options.fallback_strategy or ()]
    parsed = tuple(parse_selector(choice) for choice in choices)
    return parsed if any(parsed) else ()


def _where(strategy: Any, selectors: tuple[Expressions, ...]) -> tuple[Any, ...] | None:
    name = type(strategy).__name__
    if strategy == "SPREAD":
        where = Where(SPREAD, selectors=selectors)
    elif name == "NodeAffinitySchedulingStrategy":
        where = Where(
            NODE,
            strategy.node_id,
            strategy.soft,
            strategy._spill_on_unavailable,
            strategy._fail_on_unavailable,
            selectors=selectors,
        )
    elif name == "NodeLabelSchedulingStrategy":
        where = Where(
            LABELS,
            hard=_expressions(strategy.hard),
            preferred=_expressions(strategy.soft),
            selectors=selectors,
        )
    else:
        where = Where(selectors=selectors)
    return None if where == Where() else tuple(where)


def _expressions(given: Mapping[str, Any]) -> Expressions:
    return tuple(
        (label, _OPERATORS[type(operator).__name__], tuple(getattr(operator, "values", ())))
        for label, operator in sorted(given.items())
    )

"""The options of `@remote`, `.options()` and `@method`: names, defaults, what is allowed. A leaf.

Names, defaults and ranges are Ray 2.x's, so that its programs run unchanged. Every option is a field of a
frozen dataclass; the field's metadata holds its rule (what turns a user's value into the one stored, or
raises) and where it may be given. None means "not given" wherever Ray takes it. A wrong type raises
TypeError, a value out of range ValueError, an unknown option ValueError with the valid names and the one that
was probably meant.

Called by the API when something is decorated or `.options()` is used, never on the way of a call. What
resources the options ask for is worked out in `skate.core.resources`.
"""

# ruff: noqa: RUF009 (every field is made by _option, a call of dataclasses.field)
from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final, Literal, TypeVar, get_args

from skate._c.resources import from_units, to_units

#: A node with an accelerator has the resource of this prefix and the accelerator's name.
ACCELERATOR_PREFIX: Final = "accelerator_type:"
DEFAULT_MAX_RETRIES: Final = 3

Generated = Literal["dynamic", "streaming"]
#: How many refs a call returns, or that it returns a generator of them.
NumReturns = int | Generated
#: True for every exception, or the classes that are worth another attempt.
RetryExceptions = bool | tuple[type[Exception], ...]

#: Options that are accepted, stored and shipped but change nothing yet -> what they will do. `not_yet` finds
#: those in use, for a warning. An option leaves this table in the change that makes it work.
NOT_YET: Final[Mapping[str, str]] = {
    "runtime_env": "set the working directory and packages (env_vars are set already)",
    "object_store_memory": "reserve room in the object store",
    "_num_objects_per_yield": "split what a generator yields into this many objects",
    "_actor_generator_backpressure_num_objects": "pause an actor's generators this far ahead in sum",
    "enable_tensor_transport": "let the actor send tensors past the object store",
    "tensor_transport": "send the tensors among the results past the object store",
    "_labels": "mark the task for state queries",
    "_metadata": "mark the task for libraries above skate",
}

#: Resource names that have an option of their own -> the option.
RESERVED_NAMES: Final[Mapping[str, str]] = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
}

#: What each bundle of a placement group has besides its own (see core.group_names): nothing else has that name.
BUNDLE: Final = "bundle"

Rule = Callable[[str, Any], Any]
Place = Literal["everywhere", "decorator", "options"]
Options = TypeVar("Options", bound="_Options")


def as_index(value: Any) -> int | None:
    """An integer of any kind, numpy's for one, as Python's; None for what is none."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    return int(value.__index__())


def check_custom_name(resource: str) -> None:
    """Raises ValueError for a name in `resources={...}` that has an option of its own, or a meaning."""
    check_resource_name(resource)
    if resource in RESERVED_NAMES:
        raise ValueError(
            f"{resource!r} cannot be a custom resource; use the option {RESERVED_NAMES[resource]} instead"
        )


def check_resource_name(resource: str) -> None:
    """Raises ValueError for a name that no resource may have, also in a bundle of a placement group."""
    if resource == BUNDLE:
        raise ValueError(
            f"{resource!r} cannot be the name of a resource: each bundle of a placement group has one of that name"
        )


# ---------------------------------------------------------------------------------------------------- rules
# A rule takes the option's name and the user's value, and gives the value to keep, or raises.


def _wrong_type(name: str, allowed: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}")


def _wrong_value(name: str, allowed: str, value: object) -> ValueError:
    return ValueError(f"{name} must be {allowed}, got {value!r}")


def _quantity(name: str, value: Any) -> float | None:
    """An amount of a resource: a number, 0 or more, counted in 1/10,000."""
    if value is None:
        return None
    if isinstance(value, (bool, str)):
        raise _wrong_type(name, "a number, 0 or more, or None", value)
    units = to_units(value, name)
    if units == 0 and value != 0:
        raise _wrong_value(name, "0 or at least 0.0001, the smallest amount that is counted", value)
    return value if isinstance(value, (int, float)) else from_units(units)


def _custom_resources(name: str, value: Any) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong_type(name, "a dict of resource name -> amount, or None", value)
    amounts: dict[str, float] = {}
    for resource, amount in value.items():
        if not isinstance(resource, str):
            raise _wrong_type(f"a name in {name}", "a str", resource)
        check_custom_name(resource)
        checked = _quantity(f"{name}[{resource!r}]", amount)
        if checked is None:
            raise _wrong_type(f"{name}[{resource!r}]", "a number, 0 or more", amount)
        amounts[resource] = checked
    return amounts


def _count(minimum: int, default: int | None = None, meaning: str = "") -> Rule:
    """An int from `minimum` on; None stands for `default`."""
    allowed = f"an int, {minimum} or more{meaning}, or None"

    def rule(name: str, value: Any) -> int | None:
        if value is None:
            return default
        whole = as_index(value)
        if whole is None:
            raise _wrong_type(name, allowed, value)
        if whole < minimum:
            raise _wrong_value(name, allowed, value)
        return whole

    return rule


def _not_zero(minimum: int) -> Rule:
    """As `_count`, where 0 would block for ever and -1 means no limit."""
    count = _count(minimum, None, " but not 0 (-1: no limit)")

    def rule(name: str, value: Any) -> int | None:
        if count(name, value) == 0:
            raise _wrong_value(name, "a positive int, or -1 for no limit", value)
        return count(name, value)  # type: ignore[no-any-return]

    return rule


def _instance(kind: type, allowed: str, *, none: bool = True) -> Rule:
    def rule(name: str, value: Any) -> Any:
        if (value is None and none) or isinstance(value, kind):
            return value
        raise _wrong_type(name, allowed + (" or None" if none else ""), value)

    return rule


def _one_of(*allowed: str) -> Rule:
    words = ", ".join(repr(word) for word in allowed) + " or None"

    def rule(name: str, value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise (_wrong_value if isinstance(value, str) else _wrong_type)(name, words, value)

    return rule


def _name(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, str):
        raise _wrong_value(name, "a str that is not empty, or None", value)
    raise _wrong_type(name, "a str or None", value)


def _num_returns(name: str, value: Any) -> NumReturns | None:
    allowed = 'an int, 0 or more, "streaming" or "dynamic" (both for generators), or None'
    if isinstance(value, str):
        if value not in get_args(Generated):
            raise _wrong_value(name, allowed, value)
        return value  # type: ignore[return-value]
    if value is None:
        return None
    whole = as_index(value)
    if whole is None:
        raise _wrong_type(name, allowed, value)
    if whole < 0:
        raise _wrong_value(name, allowed, value)
    return whole


def _retry_exceptions(name: str, value: Any) -> RetryExceptions:
    allowed = "True, False, or a list of exception classes"
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, allowed, value)
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise _wrong_value(name, f"{allowed} (derived from Exception)", value)
    return tuple(value)


def _strategy(name: str, value: Any) -> Any:
    """None, "DEFAULT", "SPREAD", or one of the strategy objects.

    Those live in skate.util.scheduling_strategies, above this leaf: they are told by their class's name.
    """
    objects = (
        "PlacementGroupSchedulingStrategy",
        "NodeAffinitySchedulingStrategy",
        "NodeLabelSchedulingStrategy",
    )
    allowed = (
        f'"DEFAULT", "SPREAD", None, or an object of skate.util.scheduling_strategies: {", ".join(objects)}'
    )
    if value is None or value in ("DEFAULT", "SPREAD"):
        return value
    if isinstance(value, str):
        raise _wrong_value(name, allowed, value)
    if any(base.__name__ in objects for base in type(value).__mro__):
        return value
    raise _wrong_type(name, allowed, value)


def _placement_group(name: str, value: Any) -> Any:
    if (
        value is None
        or value == "default"
        or any(base.__name__ == "PlacementGroup" for base in type(value).__mro__)
    ):
        return value
    raise (_wrong_value if isinstance(value, str) else _wrong_type)(
        name, 'a PlacementGroup, "default" or None', value
    )


_LABEL_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{{0,251}}[a-zA-Z0-9])?/)?{_LABEL_NAME}")
_LABEL_VALUE = re.compile(rf"!?{_LABEL_NAME}|!?in\({_LABEL_NAME}(?:, ?{_LABEL_NAME})*\)|")


def check_label_selector(name: str, value: Any) -> dict[str, str] | None:
    """Label -> "value", "!value", "in(a, b)" or "!in(a, b)", in Kubernetes' syntax of labels."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong_type(name, "a dict of label -> value, or None", value)
    for label, wanted in value.items():
        if not isinstance(label, str) or not isinstance(wanted, str):
            raise _wrong_type(name, "a dict of str -> str", value)
        if not _LABEL_KEY.fullmatch(label):
            raise _wrong_value(
                f"a label in {name}", "letters, digits, '-', '_', '.', at most 63, after a prefix/", label
            )
        if not _LABEL_VALUE.fullmatch(wanted):
            raise _wrong_value(f"{name}[{label!r}]", '"value", "!value", "in(a, b)" or "!in(a, b)"', wanted)
    return dict(value)


def check_labels(labels: Any) -> dict[str, str]:
    """A node's labels, checked: label -> value, in Kubernetes' syntax."""
    for label, value in check_label_selector("labels", labels or {}).items():  # type: ignore[union-attr]
        if not re.fullmatch(rf"(?:{_LABEL_NAME})?", value):
            raise _wrong_value(f"labels[{label!r}]", "letters, digits, '-', '_', '.', at most 63", value)
    return dict(labels or {})


def _fallback_strategy(name: str, value: Any) -> tuple[dict[str, Any], ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, "a list of dicts, each with a label_selector, or None", value)
    for choice in value:
        if not isinstance(choice, Mapping) or set(choice) != {"label_selector"}:
            raise _wrong_value(name, "a list of dicts, each with a label_selector and nothing else", value)
    return tuple(
        {"label_selector": check_label_selector(f"label_selector in {name}", choice["label_selector"])}
        for choice in value
    )


def _concurrency_groups(name: str, value: Any) -> dict[str, int] | None:
    """Group -> how many of its calls run at once; a list of dicts is Ray's other spelling."""
    allowed = 'a dict of group -> max_concurrency, or a list of {"name": ..., "max_concurrency": ...}'
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        if not all(
            isinstance(group, Mapping) and set(group) == {"name", "max_concurrency"} for group in value
        ):
            raise _wrong_value(name, allowed, value)
        value = {group["name"]: group["max_concurrency"] for group in value}
    if not isinstance(value, Mapping):
        raise _wrong_type(name, allowed, value)
    width = _count(1)
    checked: dict[str, int] = {}
    for group, limit in value.items():
        if not isinstance(group, str) or limit is None:
            raise _wrong_type(name, allowed, value)
        checked[group] = width(f"{name}[{group!r}]", limit)
    return checked


#: bytes that the kernel takes of one "NAME=value", with the byte that ends it
_VARIABLE_BYTES: Final = 1 << 17
#: bytes of all variables of one worker, as JSON
_VARIABLES_BYTES: Final = 1 << 16


def check_runtime_env(name: str, value: Any) -> dict[str, Any] | None:
    """A copy. TypeError where its env_vars are no dict of str to str, ValueError where no process can have them."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong_type(name, "a dict or None", value)
    variables = value.get("env_vars")
    if variables is None:
        return dict(value)
    said = f"env_vars in {name}"
    if not isinstance(variables, Mapping):
        raise _wrong_type(said, "a dict of str -> str", variables)
    for variable, text in variables.items():
        if not isinstance(variable, str):
            raise _wrong_type(f"a name in {said}", "a str", variable)
        if not isinstance(text, str):
            raise _wrong_type(f"{variable!r} in {said}", "a str", text)
        if not variable or "=" in variable or "\0" in variable:
            raise _wrong_value(f"a name in {said}", "a str that is not empty, without '=' and NUL", variable)
        if "\0" in text:
            raise _wrong_value(f"{variable!r} in {said}", "a str without NUL", text)
        try:
            size = len(f"{variable}={text}".encode()) + 1
        except UnicodeEncodeError:
            raise _wrong_value(f"{variable!r} in {said}", "text that UTF-8 can encode", text) from None
        if size > _VARIABLE_BYTES:
            raise ValueError(
                f"{variable!r} in {said} has {size} bytes, and the system takes {_VARIABLE_BYTES} at most. Put what is "
                "longer into a file, or an argument"
            )
    return value | {"env_vars": dict(variables)}


def check_variables_together(variables: Mapping[str, str]) -> None:
    """ValueError for more env_vars, those that are inherited among them, than a request for a worker can carry."""
    size = len(json.dumps(variables))
    if size > _VARIABLES_BYTES:
        raise ValueError(
            f"the env_vars here, with those that are inherited, have {size} bytes, and {_VARIABLES_BYTES} at most are "
            "sent to workers. Leave out what the nodes have in their environment anyway"
        )


def _option(default: Any, rule: Rule, place: Place = "everywhere") -> Any:
    return field(default=default, metadata={"rule": rule, "place": place})


_FLAG = _instance(bool, "True or False", none=False)
_FLAG_OR_NONE = _instance(bool, "True, False")
_STR = _instance(str, "a str")
_DICT = _instance(dict, "a dict")


# ------------------------------------------------------------------------------------------- the dataclasses


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What every set of options can do."""

    def updated(self: Options, **changes: Any) -> Options:
        """A copy with `changes`, as `.options(**changes)` means them. Raises as `validate_task_options`."""
        return _updated(self, "options", changes)


@dataclass(frozen=True, kw_only=True)
class _SharedOptions(_Options):
    """Options of tasks and of actors. Amounts are floats as given: CPUs and GPUs, bytes of memory."""

    num_cpus: float | None = _option(None, _quantity)
    num_gpus: float | None = _option(None, _quantity)
    memory: float | None = _option(None, _quantity)
    resources: dict[str, float] | None = _option(None, _custom_resources)
    accelerator_type: str | None = _option(None, _name)
    object_store_memory: int | None = _option(None, _count(0))
    name: str | None = _option(None, _STR)
    runtime_env: dict[str, Any] | None = _option(None, check_runtime_env)
    scheduling_strategy: Any = _option(None, _strategy)
    label_selector: dict[str, str] | None = _option(None, check_label_selector)
    fallback_strategy: tuple[dict[str, Any], ...] | None = _option(None, _fallback_strategy)
    placement_group: Any = _option("default", _placement_group)
    placement_group_bundle_index: int = _option(-1, _count(-1, -1))
    placement_group_capture_child_tasks: bool | None = _option(None, _FLAG_OR_NONE)
    enable_task_events: bool = _option(True, _FLAG)
    _labels: dict[str, str] | None = _option(None, _DICT)
    _metadata: dict[str, Any] | None = _option(None, _DICT)


def _no_store_memory(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"{name} is an option of actors, not of tasks; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TaskOptions(_SharedOptions):
    """The options of a remote function.

    `num_cpus` None is 1; `num_returns` None is 1, or "streaming" of a generator.
    """

    object_store_memory: None = _option(None, _no_store_memory)
    num_returns: NumReturns | None = _option(None, _num_returns)
    max_retries: int = _option(DEFAULT_MAX_RETRIES, _count(-1, DEFAULT_MAX_RETRIES, " (-1: without end)"))
    retry_exceptions: RetryExceptions = _option(False, _retry_exceptions)
    max_calls: int | None = _option(None, _count(0), "decorator")
    _generator_backpressure_num_objects: int | None = _option(None, _not_zero(-1))
    _num_objects_per_yield: int = _option(1, _count(1, 1))

    @cached_property
    def calls_per_worker(self) -> int:
        """After how many calls a worker ends; 0 is never.

        Without `max_calls`: 1 with GPUs, whose memory a process keeps until it ends, and 0 without.
        """
        if self.max_calls is None:
            return 1 if self.num_gpus else 0
        return self.max_calls


@dataclass(frozen=True, kw_only=True)
class ActorOptions(_SharedOptions):
    """The options of a remote class. `max_concurrency` None is 1, or 1,000 where a method is `async def`."""

    name: str | None = _option(None, _name)
    namespace: str | None = _option(None, _name)
    get_if_exists: bool = _option(False, _FLAG)
    lifetime: Literal["detached", "non_detached"] | None = _option(None, _one_of("detached", "non_detached"))
    max_restarts: int = _option(0, _count(-1, 0, " (-1: without end)"))
    max_task_retries: int = _option(0, _count(-1, 0, " (-1: without end)"))
    max_concurrency: int | None = _option(None, _count(1))
    max_pending_calls: int = _option(-1, _count(-1, -1, " (-1: no limit)"))
    concurrency_groups: dict[str, int] | None = _option(None, _concurrency_groups, "decorator")
    allow_out_of_order_execution: bool | None = _option(None, _FLAG_OR_NONE)
    enable_tensor_transport: bool | None = _option(None, _FLAG_OR_NONE)
    _actor_generator_backpressure_num_objects: int | None = _option(None, _not_zero(-1))


@dataclass(frozen=True, kw_only=True)
class MethodOptions(_Options):
    """The options of an actor's method, by `@method` or `.options()` at the call. None: as the actor says."""

    name: str | None = _option(None, _STR, "options")
    num_returns: NumReturns | None = _option(None, _num_returns)
    max_task_retries: int | None = _option(None, _count(-1, None, " (-1: without end)"))
    retry_exceptions: RetryExceptions = _option(False, _retry_exceptions)
    concurrency_group: str | None = _option(None, _name)
    enable_task_events: bool | None = _option(None, _FLAG_OR_NONE)
    tensor_transport: str | None = _option(None, _STR)
    _generator_backpressure_num_objects: int | None = _option(None, _not_zero(-1))
    _num_objects_per_yield: int = _option(1, _count(1, 1), "decorator")


# ----------------------------------------------------------------------------------------------- validation


def validate_task_options(**options: Any) -> TaskOptions:
    """The options given to `@remote` on a function. Raises ValueError or TypeError as the module says."""
    return _updated(TaskOptions(), "decorator", options)


def validate_actor_options(**options: Any) -> ActorOptions:
    """The options given to `@remote` on a class. Raises ValueError or TypeError as the module says."""
    return _updated(ActorOptions(), "decorator", options)


def validate_method_options(**options: Any) -> MethodOptions:
    """The options given to `@method`. Raises ValueError or TypeError as the module says."""
    return _updated(MethodOptions(), "decorator", options)


def resolve_num_returns(num_returns: NumReturns | None, *, generator: bool) -> NumReturns:
    """How many refs a call of a function returns, or which kind of generator.

    `generator` says whether the function is one (it uses `yield`). One that is not may still return one.
    """
    if num_returns is None:
        return "streaming" if generator else 1
    return num_returns


def not_yet(options: _Options) -> dict[str, str]:
    """The options in use that do nothing yet -> what they will do, from `NOT_YET`."""
    return {
        option.name: NOT_YET[option.name]
        for option in fields(options)
        if option.name in NOT_YET and _asks_something(getattr(options, option.name), option.default)
    }


def _asks_something(value: object, default: object) -> bool:
    return not (value is None or value is False or value == default or value == {} or value == "DEFAULT")


_SUBJECT: Final = {TaskOptions: "remote functions", ActorOptions: "actors", MethodOptions: "actor methods"}


def _updated(base: Options, place: Place, changes: Mapping[str, Any]) -> Options:
    known = {option.name: option for option in fields(base)}
    checked = {name: _checked(type(base), known, place, name, value) for name, value in changes.items()}
    result = replace(base, **checked)
    _check_together(result)
    return result


def _checked(
    kind: type[_Options], known: Mapping[str, Field[Any]], place: Place, name: str, value: Any
) -> Any:
    option = known.get(name)
    if option is None:
        raise ValueError(_unknown(kind, name, known))
    allowed = option.metadata["place"]
    if allowed not in ("everywhere", place):
        where = "the decorator" if allowed == "decorator" else ".options()"
        raise ValueError(
            f"{name} can only be set in {where} of {_SUBJECT[kind]}, not in {_PLACE_NAMES[place]}"
        )
    return option.metadata["rule"](name, value)


_PLACE_NAMES: Final = {"decorator": "the decorator", "options": ".options()"}


def _unknown(kind: type[_Options], name: str, known: Mapping[str, object]) -> str:
    """What to say of an option that `kind` does not have: the likely mistake, then all that is valid."""
    others = [
        other for other in _SUBJECT if other is not kind and name in {option.name for option in fields(other)}
    ]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if others:
        guess = f" It is an option of {_SUBJECT[others[0]]}."
    elif near:
        guess = f" Did you mean {near[0]!r}?"
    else:
        guess = ""
    return f"{name!r} is no option of {_SUBJECT[kind]}.{guess} Valid options: {', '.join(known)}"


def _check_together(options: _Options) -> None:
    """What no single option can say."""
    if (
        isinstance(options, _SharedOptions)
        and options.placement_group not in ("default", None)
        and options.scheduling_strategy is not None
    ):
        raise ValueError(
            "placement_group and scheduling_strategy were both given; give the group in "
            "scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=...) alone"
        )
    if isinstance(options, ActorOptions) and options.get_if_exists and not options.name:
        raise ValueError("get_if_exists needs the actor's name: .options(name=..., get_if_exists=True)")

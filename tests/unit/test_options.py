"""The options of tasks, actors and methods: what is accepted, what it becomes, and what the refusals say."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from skate import options as options_module
from skate.options import (
    NOT_YET,
    ActorOptions,
    MethodOptions,
    TaskOptions,
    not_yet,
    resolve_num_returns,
    validate_actor_options,
    validate_method_options,
    validate_task_options,
)

Validate = Callable[..., Any]


class PlacementGroup:
    """Told by its class's name, as the real one is, which lives above the options."""


class SpreadOverRacks:
    pass


class NodeAffinitySchedulingStrategy:
    pass


class DerivedStrategy(NodeAffinitySchedulingStrategy):
    pass


def test_defaults_are_rays() -> None:
    task = validate_task_options()
    assert task == TaskOptions()
    assert (task.num_cpus, task.num_returns, task.max_retries, task.retry_exceptions) == (
        None,
        None,
        3,
        False,
    )
    actor = validate_actor_options()
    assert (actor.max_restarts, actor.max_task_retries, actor.max_pending_calls) == (0, 0, -1)
    assert actor.lifetime is None
    assert validate_method_options() == MethodOptions()


ACCEPTED: list[tuple[Validate, str, Any, Any]] = [
    (validate_task_options, "num_cpus", 0.5, 0.5),
    (validate_task_options, "num_cpus", np.int64(2), 2),
    (validate_task_options, "num_cpus", Decimal("0.3"), 0.3),
    (validate_task_options, "num_cpus", 0, 0),
    (validate_task_options, "num_gpus", 0.25, 0.25),
    (validate_task_options, "num_gpus", 4.0, 4.0),
    (validate_task_options, "num_gpus", 1.5, 1.5),  # that more than one are whole is checked at the call
    (validate_task_options, "memory", 500 * 1024 * 1024, 500 * 1024 * 1024),
    (validate_task_options, "resources", {"x": 1}, {"x": 1}),
    (validate_task_options, "resources", None, None),
    (validate_task_options, "num_returns", 0, 0),
    (validate_task_options, "num_returns", 7, 7),
    (validate_task_options, "num_returns", "streaming", "streaming"),
    (validate_task_options, "num_returns", "dynamic", "dynamic"),
    (validate_task_options, "num_returns", None, None),
    (validate_task_options, "max_retries", -1, -1),
    (validate_task_options, "max_retries", None, 3),
    (validate_task_options, "retry_exceptions", True, True),
    (validate_task_options, "retry_exceptions", [OSError, KeyError], (OSError, KeyError)),
    (validate_task_options, "max_calls", 1, 1),
    (validate_task_options, "name", "fib", "fib"),
    (validate_task_options, "runtime_env", {"env_vars": {"A": "1"}}, {"env_vars": {"A": "1"}}),
    (validate_task_options, "scheduling_strategy", "SPREAD", "SPREAD"),
    (validate_task_options, "label_selector", {"a/region": "!in(us, eu-1)"}, {"a/region": "!in(us, eu-1)"}),
    (
        validate_task_options,
        "fallback_strategy",
        [{"label_selector": {"zone": "a"}}],
        ({"label_selector": {"zone": "a"}},),
    ),
    (validate_task_options, "accelerator_type", "A100", "A100"),
    (validate_task_options, "enable_task_events", False, False),
    (validate_task_options, "_labels", {"a": "b"}, {"a": "b"}),
    (validate_task_options, "_metadata", {"a": 1}, {"a": 1}),
    (validate_task_options, "_generator_backpressure_num_objects", -1, -1),
    (validate_task_options, "object_store_memory", None, None),
    (validate_actor_options, "lifetime", "detached", "detached"),
    (validate_actor_options, "max_restarts", -1, -1),
    (validate_actor_options, "max_concurrency", 1000, 1000),
    (validate_actor_options, "concurrency_groups", {"io": 2}, {"io": 2}),
    (validate_actor_options, "concurrency_groups", [{"name": "io", "max_concurrency": 2}], {"io": 2}),
    (validate_actor_options, "object_store_memory", 100, 100),
    (validate_actor_options, "namespace", "mine", "mine"),
    (validate_method_options, "num_returns", 2, 2),
    (validate_method_options, "concurrency_group", "io", "io"),
    (validate_method_options, "max_task_retries", None, None),
    (validate_method_options, "tensor_transport", "nccl", "nccl"),
]


@pytest.mark.parametrize(("validate", "name", "given", "kept"), ACCEPTED)
def test_accepted(validate: Validate, name: str, given: Any, kept: Any) -> None:
    stored = getattr(validate(**{name: given}), name)
    assert stored == kept
    assert type(stored) is type(kept) or isinstance(given, np.generic)


@pytest.mark.parametrize("strategy", ["DEFAULT", None, NodeAffinitySchedulingStrategy(), DerivedStrategy()])
def test_strategies(strategy: object) -> None:
    assert validate_task_options(scheduling_strategy=strategy).scheduling_strategy is strategy


REFUSED: list[tuple[Validate, str, Any, type[Exception], str]] = [
    (validate_task_options, "num_cpus", -1, ValueError, "'num_cpus' cannot be negative, got -1"),
    (validate_task_options, "num_cpus", "1", TypeError, "num_cpus must be a number.* got '1' of type str"),
    (validate_task_options, "num_cpus", True, TypeError, "num_cpus must be a number.* got True"),
    (validate_task_options, "num_cpus", [1], TypeError, "num_cpus"),
    (validate_task_options, "num_cpus", float("nan"), ValueError, "finite number, got nan"),
    (validate_task_options, "num_cpus", 0.00005, ValueError, "at least 0.0001.* got 5e-05"),
    (validate_task_options, "resources", {"CPU": 1}, ValueError, "use the option num_cpus"),
    (validate_task_options, "resources", {"x": "a"}, TypeError, r"resources\['x'\] must be a number"),
    (validate_task_options, "resources", {"x": None}, TypeError, r"resources\['x'\] must be a number"),
    (validate_task_options, "resources", {"x": -1}, ValueError, "'x'.* cannot be negative"),
    (validate_task_options, "resources", {1: 1}, TypeError, "must be a str, got 1"),
    (validate_task_options, "resources", ["x"], TypeError, "resources must be a dict"),
    (validate_task_options, "num_returns", -1, ValueError, "num_returns must be an int, 0 or more.* got -1"),
    (validate_task_options, "num_returns", "bad", ValueError, "num_returns must be .*streaming.* got 'bad'"),
    (validate_task_options, "num_returns", 1.5, TypeError, "num_returns must be .* got 1.5 of type float"),
    (validate_task_options, "num_returns", True, TypeError, "num_returns"),
    (validate_task_options, "max_retries", -2, ValueError, "max_retries must be an int, -1 or more"),
    (validate_task_options, "max_retries", 1.0, TypeError, "max_retries"),
    (validate_task_options, "retry_exceptions", None, TypeError, "retry_exceptions must be True, False, or"),
    (validate_task_options, "retry_exceptions", [3], ValueError, "retry_exceptions"),
    (validate_task_options, "retry_exceptions", [KeyboardInterrupt], ValueError, "derived from Exception"),
    (validate_task_options, "max_calls", -1, ValueError, "max_calls"),
    (validate_task_options, "name", 3, TypeError, "name must be a str or None, got 3"),
    (validate_task_options, "runtime_env", "x", TypeError, "runtime_env must be a dict"),
    (validate_task_options, "scheduling_strategy", "BAD", ValueError, "DEFAULT.*SPREAD.*got 'BAD'"),
    (validate_task_options, "scheduling_strategy", SpreadOverRacks(), TypeError, "scheduling_strategy"),
    (validate_task_options, "label_selector", {"-a": "b"}, ValueError, "label"),
    (validate_task_options, "label_selector", {"a": "in()"}, ValueError, "label_selector"),
    (validate_task_options, "label_selector", {"a": 1}, TypeError, "label_selector"),
    (validate_task_options, "label_selector", "a=b", TypeError, "label_selector"),
    (validate_task_options, "fallback_strategy", [{}], ValueError, "fallback_strategy"),
    (validate_task_options, "fallback_strategy", [{"label_selector": {"a": "?"}}], ValueError, "got"),
    (validate_task_options, "object_store_memory", 5, ValueError, "option of actors, not of tasks"),
    (validate_task_options, "enable_task_events", None, TypeError, "True or False"),
    (validate_task_options, "_generator_backpressure_num_objects", 0, ValueError, "positive int"),
    (validate_task_options, "_num_objects_per_yield", 0, ValueError, "_num_objects_per_yield"),
    (validate_task_options, "placement_group", "pg", ValueError, "PlacementGroup"),
    (validate_actor_options, "lifetime", "forever", ValueError, "'detached', 'non_detached' or None"),
    (validate_actor_options, "max_restarts", -2, ValueError, "max_restarts"),
    (validate_actor_options, "max_concurrency", 0, ValueError, "max_concurrency must be an int, 1 or more"),
    (validate_actor_options, "namespace", "", ValueError, "namespace must be a str that is not empty"),
    (validate_actor_options, "namespace", 3, TypeError, "namespace"),
    (validate_actor_options, "name", "", ValueError, "not empty"),
    (validate_actor_options, "concurrency_groups", {"io": 0}, ValueError, "io"),
    (validate_actor_options, "concurrency_groups", [{"name": "io"}], ValueError, "concurrency_groups"),
    (validate_actor_options, "concurrency_groups", "io", TypeError, "concurrency_groups"),
    (validate_actor_options, "get_if_exists", True, ValueError, "needs the actor's name"),
    (validate_method_options, "num_returns", "all", ValueError, "num_returns"),
    (validate_method_options, "concurrency_group", 3, TypeError, "concurrency_group"),
]


@pytest.mark.parametrize(("validate", "name", "given", "error", "message"), REFUSED)
def test_refused(validate: Validate, name: str, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validate(**{name: given})


# ----------------------------------------------------------------------------------- unknown, misplaced


def test_an_unknown_option_is_guessed_and_the_valid_ones_listed() -> None:
    with pytest.raises(ValueError, match="'num_cpu' is no option of remote functions") as caught:
        validate_task_options(num_cpu=1)
    message = str(caught.value)
    assert "Did you mean 'num_cpus'?" in message
    for option in dataclasses.fields(TaskOptions):
        assert option.name in message


def test_an_option_of_the_other_kind_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="It is an option of actors"):
        validate_task_options(max_restarts=1)
    with pytest.raises(ValueError, match="It is an option of remote functions"):
        validate_actor_options(max_retries=1)
    with pytest.raises(ValueError, match="no option of actor methods"):
        validate_method_options(num_cpus=1)


def test_an_option_like_no_other_gets_no_guess() -> None:
    with pytest.raises(ValueError, match="zzz") as caught:
        validate_task_options(zzz=1)
    assert "Did you mean" not in str(caught.value)


def test_options_have_their_place() -> None:
    with pytest.raises(ValueError, match="max_calls can only be set in the decorator"):
        validate_task_options().updated(max_calls=1)
    with pytest.raises(ValueError, match="concurrency_groups can only be set in the decorator"):
        validate_actor_options().updated(concurrency_groups={"io": 1})
    with pytest.raises(ValueError, match="_num_objects_per_yield can only be set in the decorator"):
        validate_method_options().updated(_num_objects_per_yield=2)
    with pytest.raises(ValueError, match=r"name can only be set in \.options\(\)"):
        validate_method_options(name="x")
    assert validate_method_options().updated(name="x").name == "x"


def test_a_group_and_a_strategy_exclude_each_other() -> None:
    task = validate_task_options(placement_group=PlacementGroup())
    with pytest.raises(ValueError, match="both given"):
        task.updated(scheduling_strategy="SPREAD")


# ------------------------------------------------------------------------------------------------- updating


def test_updating_keeps_the_rest_and_the_original() -> None:
    task = validate_task_options(num_cpus=2, max_calls=4, resources={"x": 1})
    changed = task.updated(num_cpus=None, name="other")
    assert (changed.num_cpus, changed.max_calls, changed.name) == (None, 4, "other")
    assert changed.resources == {"x": 1}
    assert task.num_cpus == 2
    with pytest.raises(ValueError, match="Did you mean 'num_returns'"):
        task.updated(num_return=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.num_cpus = 1  # type: ignore[misc]


def test_later_changes_of_a_users_dict_do_not_reach_the_options() -> None:
    resources, labels = {"x": 1}, {"zone": "a"}
    task = validate_task_options(resources=resources, label_selector=labels)
    resources["x"] = -5
    labels["zone"] = "?"
    assert task.resources == {"x": 1}
    assert task.label_selector == {"zone": "a"}


@pytest.mark.parametrize(
    "made", [TaskOptions(name="f"), ActorOptions(name="a"), MethodOptions(num_returns=2)]
)
def test_options_travel(made: object) -> None:
    assert pickle.loads(pickle.dumps(made)) == made


# --------------------------------------------------------------------------------------------- conclusions


def test_a_gpu_task_ends_its_worker_unless_told_otherwise() -> None:
    assert validate_task_options().calls_per_worker == 0
    assert validate_task_options(num_gpus=0).calls_per_worker == 0
    assert validate_task_options(num_gpus=0.5).calls_per_worker == 1
    assert validate_task_options(num_gpus=1, max_calls=0).calls_per_worker == 0
    assert validate_task_options(max_calls=5).updated(num_gpus=1).calls_per_worker == 5


def test_num_returns_follows_the_function() -> None:
    assert resolve_num_returns(None, generator=False) == 1
    assert resolve_num_returns(None, generator=True) == "streaming"
    assert resolve_num_returns(3, generator=True) == 3
    assert resolve_num_returns("dynamic", generator=True) == "dynamic"
    assert resolve_num_returns("streaming", generator=False) == "streaming"


def test_options_that_do_nothing_yet_are_told() -> None:
    assert not_yet(validate_task_options()) == {}
    quiet = validate_task_options(
        runtime_env={}, scheduling_strategy="DEFAULT", placement_group=None, label_selector=None
    )
    assert not_yet(quiet) == {}
    assert not_yet(validate_task_options(_labels={"a": "b"})).keys() == {"_labels"}
    assert not_yet(validate_task_options(placement_group_bundle_index=0)) == {}
    assert not_yet(validate_task_options(runtime_env={"a": 1})) == {"runtime_env": NOT_YET["runtime_env"]}


def test_the_table_names_options_that_exist() -> None:
    known = {option.name for kind in options_module._SUBJECT for option in dataclasses.fields(kind)}
    assert set(NOT_YET) <= known

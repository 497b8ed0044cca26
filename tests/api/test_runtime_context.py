"""Where am I? The runtime context, in the driver and in tasks."""

import pytest
import skate


@skate.remote
def ids() -> dict[str, str]:
    context = skate.get_runtime_context()
    return {
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "task": context.get_task_id(),
        "worker": context.get_worker_id(),
        "namespace": context.namespace,
    }


@skate.remote
def names() -> tuple[str, str]:
    context = skate.get_runtime_context()
    return context.get_task_name(), context.get_task_function_name()


@skate.remote
def resources() -> dict[str, float]:
    return skate.get_runtime_context().get_assigned_resources()


@pytest.fixture(scope="module", autouse=True)
def named():
    skate.init(num_cpus=2, num_gpus=1, resources={"special": 1}, namespace="a name")
    yield
    skate.shutdown()


def test_tasks_share_job_node_and_namespace_with_the_driver() -> None:
    context, there = skate.get_runtime_context(), skate.get(ids.remote())
    assert there["job"] == context.get_job_id()
    assert there["node"] == context.get_node_id() == skate.nodes()[0]["NodeID"]
    assert there["namespace"] == context.namespace == "a name"
    assert there["worker"] != context.get_worker_id()


def test_every_task_has_its_id() -> None:
    seen = [there["task"] for there in skate.get([ids.remote() for _ in range(20)])]
    assert len(set(seen)) == 20


def test_ids_are_hexadecimal() -> None:
    for key, value in skate.get(ids.remote()).items():
        assert key == "namespace" or bytes.fromhex(value)


def test_a_task_knows_its_name() -> None:
    name, function = skate.get(names.remote())
    assert name == "names"
    assert function.endswith("test_runtime_context.names")
    name, function = skate.get(names.options(name="another").remote())
    assert name == "another"
    assert function.endswith("names")


def test_the_driver_is_in_no_task() -> None:
    assert skate.get_runtime_context().get_task_id() is None
    assert skate.get_runtime_context().get_actor_id() is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"CPU": 1}),
        ({"num_cpus": 0.5}, {"CPU": 0.5}),
        ({"num_cpus": 0}, {}),
        ({"num_gpus": 0.25, "resources": {"special": 1}}, {"CPU": 1, "GPU": 0.25, "special": 1}),
        ({"memory": 1_000_000}, {"CPU": 1, "memory": 1_000_000}),
    ],
    ids=repr,
)
def test_a_task_knows_its_resources(options: dict, expected: dict) -> None:
    assert skate.get(resources.options(**options).remote()) == expected


def test_gpus() -> None:
    @skate.remote(num_gpus=1)
    def accelerators() -> list[str]:
        return skate.get_runtime_context().get_accelerator_ids()["GPU"]

    assert skate.get(accelerators.remote()) == ["0"]


def test_as_a_dict_it_has_what_there_is() -> None:
    """No key of what is not: a driver has no task, a task no actor."""

    def keys() -> set[str]:
        return set(skate.get_runtime_context().get())

    class Actor:
        def keys(self) -> set[str]:
            return keys()

    always = {"job_id", "node_id", "worker_id", "namespace"}
    assert keys() == always
    assert skate.get(skate.remote(keys).remote()) == always | {"task_id"}
    assert skate.get(skate.remote(Actor).remote().keys.remote()) == always | {"task_id", "actor_id"}

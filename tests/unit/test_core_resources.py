"""Requests, devices and a node's resources, case by case; the machine test drives them at random."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from skate._c.resources import MAX_UNITS, UNITS_PER_ONE
from skate.core import resources as core_resources
from skate.core.resources import (
    DeviceAllocator,
    NodeResources,
    ResourceSet,
    actor_requests,
    task_request,
)
from skate.options import validate_actor_options, validate_task_options

ONE = UNITS_PER_ONE


def node(gpus: int = 0, **totals: int) -> NodeResources:
    if gpus:
        totals["GPU"] = gpus * ONE
    return NodeResources(totals, [str(device) for device in range(gpus)])


def request(**amounts: float) -> ResourceSet:
    return ResourceSet.from_floats(amounts)


# ---------------------------------------------------------------------------------------------- ResourceSet


def test_a_request_prints_as_users_know_it() -> None:
    assert repr(ResourceSet.from_options()) == "{'CPU': 1.0}"
    assert repr(ResourceSet.from_options(0.5, 2, 100, {"x": 0.25})) == (
        "{'CPU': 0.5, 'GPU': 2.0, 'memory': 100.0, 'x': 0.25}"
    )


def test_zeros_and_order_make_no_difference() -> None:
    one = ResourceSet({"CPU": 5, "x": 3, "y": 0})
    two = ResourceSet({"x": 3, "CPU": 5})
    assert one == two
    assert hash(one) == hash(two)
    assert one != ResourceSet({"CPU": 5})
    assert one != {"CPU": 5, "x": 3}
    assert list(one) == ["CPU", "x"]
    assert len(one) == 2
    assert one.only("x") == ResourceSet({"x": 3})
    assert one.get("y") == 0
    assert not ResourceSet()


def test_a_pickled_request_is_found_again_in_another_process() -> None:
    """Strings hash differently there, so the hash must not travel."""
    data = pickle.dumps(ResourceSet({"CPU": 5, "x": 3}))
    program = (
        "import pickle, sys; from skate.core.resources import ResourceSet; "
        f"got = pickle.loads({data!r}); assert {{ResourceSet({{'x': 3, 'CPU': 5}}): 1}}[got] == 1"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"CPU": 1.0}),
        ({"num_cpus": 0}, {}),
        ({"num_cpus": 1.5}, {"CPU": 1.5}),
        ({"num_cpus": 0.12345678}, {"CPU": 0.1234}),
        ({"num_gpus": 0.5}, {"CPU": 1.0, "GPU": 0.5}),
        ({"num_gpus": 3.0}, {"CPU": 1.0, "GPU": 3.0}),
        ({"memory": 100.7}, {"CPU": 1.0, "memory": 100.0}),
        ({"resources": {"x": 0}}, {"CPU": 1.0}),
        ({"accelerator_type": "A100"}, {"CPU": 1.0, "accelerator_type:A100": 0.001}),
        ({"default_cpus": 0}, {}),
    ],
)
def test_from_options_as_ray_has_it(options: dict[str, Any], expected: dict[str, float]) -> None:
    assert ResourceSet.from_options(**options).to_dict() == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": float("nan")}, ValueError, "num_cpus"),
        ({"num_gpus": 1.5}, ValueError, "num_gpus over 1 must be a whole number, got 1.5"),
        ({"resources": {"TPU": 2.5}}, ValueError, "TPU over 1 must be a whole number, got 2.5"),
        ({"resources": {"neuron_cores": 1.0001}}, ValueError, "whole number, got 1.0001"),
        ({"num_gpus": []}, TypeError, "num_gpus"),
        ({"resources": {"CPU": 1}}, ValueError, "use the option num_cpus"),
        ({"resources": {"memory": 1}}, ValueError, "use the option memory"),
        ({"resources": {"bundle": 1}}, ValueError, "'bundle' cannot be the name of a resource"),
        ({"resources": {"x": -0.1}}, ValueError, "'x'"),
    ],
)
def test_from_options_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ResourceSet.from_options(**options)


@pytest.mark.parametrize("bad", [-1, MAX_UNITS + 1])
def test_units_out_of_range_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="'x'"):
        ResourceSet({"x": bad})


def test_units_are_ints() -> None:
    with pytest.raises(TypeError, match="'x'"):
        ResourceSet({"x": 1.0})  # type: ignore[dict-item]


def test_a_task_takes_one_cpu_unless_told_otherwise() -> None:
    assert task_request(validate_task_options()).to_dict() == {"CPU": 1.0}
    assert task_request(validate_task_options(num_cpus=None)).to_dict() == {"CPU": 1.0}
    assert task_request(validate_task_options(num_cpus=0, resources={"x": 1})).to_dict() == {"x": 1.0}


@pytest.mark.parametrize(
    ("options", "held", "placement"),
    [
        ({}, {}, {"CPU": 1.0}),
        ({"memory": 1000}, {"memory": 1000.0}, {"CPU": 1.0, "memory": 1000.0}),
        ({"num_gpus": 0}, {"CPU": 1.0}, {"CPU": 1.0}),
        ({"num_gpus": 0.5}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.5}),
        ({"num_cpus": 0}, {}, {}),
        ({"num_cpus": 2}, {"CPU": 2.0}, {"CPU": 2.0}),
        ({"resources": {"x": 1}}, {"CPU": 1.0, "x": 1.0}, {"CPU": 1.0, "x": 1.0}),
    ],
)
def test_an_actor_holds_and_needs(
    options: dict[str, Any], held: dict[str, float], placement: dict[str, float]
) -> None:
    requests = actor_requests(validate_actor_options(**options))
    assert requests.held.to_dict() == held
    assert requests.placement.to_dict() == placement


# ------------------------------------------------------------------------------------------ DeviceAllocator


def test_fractions_pack_onto_one_device() -> None:
    devices = DeviceAllocator(2)
    assert devices.allocate(3_000) == [(0, 3_000)]
    assert devices.allocate(3_000) == [(0, 3_000)]
    assert devices.allocate(5_000) == [(1, 5_000)]  # device 0 has 4,000 free
    assert devices.allocate(4_000) == [(0, 4_000)]  # the best fit, though device 1 has room too
    assert devices.free_units == (0, 5_000)
    devices.check()


def test_six_sixths_share_one_device() -> None:
    devices = DeviceAllocator(2)
    sixth = ResourceSet.from_options(num_gpus=1 / 6).get("GPU")
    assert [devices.allocate(sixth) for _ in range(6)] == [[(0, sixth)]] * 6
    assert devices.allocate(ONE) == [(1, ONE)]


def test_whole_numbers_take_whole_devices() -> None:
    devices = DeviceAllocator(3)
    assert devices.allocate(1) == [(0, 1)]
    assert devices.allocate(3 * ONE) is None
    assert devices.allocate(2 * ONE) == [(1, ONE), (2, ONE)]
    assert devices.allocate(ONE) is None
    devices.release([(0, 1)])
    assert devices.allocate(ONE) == [(0, ONE)]


def test_more_than_one_and_a_fraction_is_never_granted() -> None:
    devices = DeviceAllocator(4)
    assert devices.allocate(15_000) is None
    assert not devices.feasible(15_000)
    assert devices.feasible(4 * ONE)
    assert not devices.feasible(5 * ONE)
    assert devices.feasible(0)
    assert devices.allocate(0) == []
    assert not DeviceAllocator(0).feasible(1)
    with pytest.raises(ValueError, match="cannot allocate -1"):
        devices.allocate(-1)


@pytest.mark.parametrize(
    "parts", [[(0, 6_000)], [(1, 1)], [(0, 3_000), (0, 3_000)], [(0, 0)], [(9, 1)], [(0, -1)]]
)
def test_releasing_what_is_not_held_changes_nothing(parts: list[tuple[int, int]]) -> None:
    devices = DeviceAllocator(2)
    devices.allocate(5_000)
    with pytest.raises(ValueError, match="releasing"):
        devices.release([(0, 1_000), *parts] if parts[0][0] else parts)
    assert devices.free_units == (5_000, ONE)
    devices.check()


# -------------------------------------------------------------------------------------------- NodeResources


def test_all_or_nothing() -> None:
    machine = node(CPU=2 * ONE, x=ONE)
    assert machine.allocate(request(CPU=1, x=1)) is not None
    assert machine.allocate(request(CPU=1, x=0.5)) is None
    assert machine.available_dict() == {"CPU": 1.0}  # x is used up, so it is left out
    assert machine.total_dict() == {"CPU": 2.0, "x": 1.0}
    assert machine.utilization() == 1.0
    machine.check()


def test_two_halves_on_two_devices_are_no_whole_one() -> None:
    machine = node(gpus=2, CPU=8 * ONE)
    first, second = (machine.allocate(request(GPU=0.6)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.devices, second.devices} == {(("0", 6_000),), (("1", 6_000),)}
    assert machine.available_dict()["GPU"] == 0.8
    assert machine.allocate(request(GPU=0.8)) is None
    assert machine.available_dict()["CPU"] == 8.0
    machine.release(first)
    whole = machine.allocate(request(GPU=1))
    assert whole is not None
    assert whole.device_ids == ["0"]
    machine.check()


def test_device_ids_are_the_ones_given() -> None:
    machine = NodeResources({"GPU": 2 * ONE}, ["GPU-aaa", "GPU-bbb"])
    both = machine.allocate(request(GPU=2))
    assert both is not None
    assert both.devices == (("GPU-aaa", ONE), ("GPU-bbb", ONE))
    assert "GPU-aaa" in repr(both)


@pytest.mark.parametrize(("units", "ids"), [(ONE, []), (ONE, ["0", "1"]), (0, ["0"]), (15_000, ["0", "1"])])
def test_gpus_and_ids_must_agree(units: int, ids: list[str]) -> None:
    with pytest.raises(ValueError, match="GPUs need as many ids"):
        NodeResources({"GPU": units}, ids)


def test_feasible_is_about_an_idle_node() -> None:
    machine = node(gpus=2, CPU=2 * ONE)
    assert machine.allocate(request(CPU=2, GPU=2)) is not None
    assert machine.feasible(request(CPU=2, GPU=2))
    assert machine.feasible(ResourceSet())
    assert not machine.feasible(request(CPU=3))
    assert not machine.feasible(request(GPU=1.5))
    assert not machine.feasible(request(unknown=0.1))


def test_a_blocked_worker_lends_its_cpus_and_nothing_else() -> None:
    machine = node(gpus=1, CPU=ONE, x=ONE)
    parent = machine.allocate(request(CPU=1, GPU=1, x=1))
    assert parent is not None
    machine.release_cpus(parent)
    machine.release_cpus(parent)
    assert not parent.cpus_held
    assert machine.available_dict() == {"CPU": 1.0}
    machine.check()

    child = machine.allocate(request(CPU=1))
    assert child is not None
    assert not machine.reacquire_cpus(parent)
    machine.check()
    machine.release(child)
    assert machine.reacquire_cpus(parent)
    assert machine.reacquire_cpus(parent)
    assert machine.available_dict() == {}
    machine.release(parent)
    assert machine.available_dict() == machine.total_dict()


def test_a_worker_that_dies_while_blocked_gives_back_the_rest_once() -> None:
    machine = node(CPU=ONE, x=ONE)
    parent = machine.allocate(request(CPU=1, x=1))
    assert parent is not None
    machine.release_cpus(parent)
    child = machine.allocate(request(CPU=1))
    assert child is not None
    machine.release(parent)
    assert machine.available_dict() == {"x": 1.0}
    assert machine.live == {child}
    machine.check()


def test_a_lease_without_cpus_can_block_too() -> None:
    machine = node(CPU=ONE)
    lease = machine.allocate(ResourceSet())
    assert lease is not None
    machine.release_cpus(lease)
    assert machine.reacquire_cpus(lease)
    machine.release(lease)
    machine.check()


def test_an_allocation_ends_once_and_on_its_own_node() -> None:
    machine, other = node(CPU=ONE), node(CPU=ONE)
    lease = machine.allocate(request(CPU=1))
    assert lease is not None
    with pytest.raises(ValueError, match="not live"):
        other.release(lease)
    machine.release(lease)
    for operation in (machine.release, machine.release_cpus, machine.reacquire_cpus):
        with pytest.raises(ValueError, match="not live"):
            operation(lease)
    assert machine.available_dict() == {"CPU": 1.0}


def test_requests_for_ever_new_names_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_resources, "COMPILED_REQUESTS", 8)
    machine = node(CPU=ONE, x=ONE)
    lease = machine.allocate(request(CPU=1, x=0.5))
    assert lease is not None
    for i in range(100):
        assert not machine.feasible(request(**{f"name{i}": 1}))
    assert len(machine._compiled) <= 8
    assert len(machine._index) < 20
    machine.release(lease)
    assert machine.allocate(request(CPU=1, x=1)) is not None
    machine.check()


def test_check_notices_a_lost_unit() -> None:
    machine = node(gpus=1, CPU=ONE)
    lease = machine.allocate(request(CPU=1, GPU=0.5))
    machine._live.clear()
    with pytest.raises(RuntimeError):
        machine.check()
    assert lease is not None
    machine._live.add(lease)
    machine.check()
    machine._devices._free[0] += 1
    with pytest.raises(RuntimeError, match="GPU 0"):
        machine.check()

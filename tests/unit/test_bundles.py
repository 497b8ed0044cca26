"""What placement groups reserve of a node: names, amounts and GPUs, prepared, committed and given back."""

from __future__ import annotations

import pytest
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core import group_names
from skate.core.bundles import BundledResources
from skate.core.resources import DeviceAllocator, ResourceSet
from skate.core.usage import in_groups

G, H = "a" * 32, "b" * 32


def request(**amounts: float) -> ResourceSet:
    return ResourceSet({name: int(amount * ONE) for name, amount in amounts.items()})


def node() -> BundledResources:
    return BundledResources({"CPU": 4 * ONE, "GPU": 3 * ONE, "x": ONE}, ["G0", "G1", "G2"])


def with_group(*bundles: ResourceSet) -> BundledResources:
    machine = node()
    assert machine.prepare(G, dict(enumerate(bundles)))
    machine.commit(G, range(len(bundles)))
    return machine


def test_names_are_rays() -> None:
    units = {"CPU": ONE, "GPU": ONE // 2}
    assert group_names.of_bundle(G, 1, units) == {
        f"CPU_group_{G}": ONE,
        f"CPU_group_1_{G}": ONE,
        f"GPU_group_{G}": ONE // 2,
        f"GPU_group_1_{G}": ONE // 2,
        f"bundle_group_{G}": 1000 * ONE,
        f"bundle_group_1_{G}": 1000 * ONE,
    }
    assert group_names.asked_of_group(G, -1, units) == {
        f"CPU_group_{G}": ONE,
        f"GPU_group_{G}": ONE // 2,
        f"bundle_group_{G}": 10,
    }
    assert group_names.asked_of_group(G, 2, {}) == {f"bundle_group_{G}": 10, f"bundle_group_2_{G}": 10}


@pytest.mark.parametrize("index", [-1, 0, 13])
def test_names_are_taken_apart_again(index: int) -> None:
    for name in ("CPU", "accelerator_type:A100", "my_group_thing", "x_group_1"):
        assert group_names.parse(group_names.in_group(name, G, index)) == (name, index, G)
    for name in ("CPU", "my_group_thing", "CPU_group_0", f"CPU_group_{G}x", "_group_"):
        assert group_names.parse(name) is None


def test_a_request_knows_its_group() -> None:
    plain = request(CPU=1, GPU=0.5)
    inside = plain.in_group(G, 3)
    assert (inside.group, inside.index) == (G, 3)
    assert (plain.group, plain.index) == (None, -1)
    assert inside.plain() == plain.units() == plain.plain()
    assert inside.asks_of("CPU") == ONE
    assert set(inside.only("CPU")) == {f"CPU_group_{G}", f"CPU_group_3_{G}"}
    assert not set(inside.only("CPU")) & set(inside.without("CPU"))
    assert len(inside.without("CPU")) == len(inside) - 2


def test_what_is_prepared_is_nobodys_until_it_is_committed() -> None:
    machine = node()
    inside = request(CPU=1).in_group(G, -1)
    assert machine.prepare(G, {0: request(CPU=2)})
    assert machine.available_dict()["CPU"] == 2.0
    assert not machine.feasible(inside)
    assert machine.allocate(inside) is None
    machine.check()
    machine.commit(G, [0])
    assert machine.feasible(inside)
    lease = machine.allocate(inside)
    assert lease is not None
    assert machine.available_dict()["CPU"] == 2.0
    assert machine.available_dict()[f"CPU_group_{G}"] == 1.0
    assert machine.total_dict()[f"CPU_group_0_{G}"] == 2.0
    assert machine.live == {lease}
    assert in_groups(*machine.all_units()) == {"CPU": (ONE, 2 * ONE)}
    assert machine.reserved_units() == {"CPU": 2 * ONE}
    machine.check()
    machine.release(lease)
    machine.remove_group(G)
    assert machine.available_dict() == machine.total_dict() == {"CPU": 4.0, "GPU": 3.0, "x": 1.0}
    machine.check()


def test_all_bundles_or_none() -> None:
    machine = node()
    assert not machine.prepare(G, {0: request(CPU=2), 1: request(CPU=3)})
    assert not machine.prepare(G, {0: request(x=1), 1: request(GPU=4)})
    assert machine.available_dict() == machine.total_dict()
    assert not machine.has_room([request(CPU=2), request(CPU=3)])
    assert machine.has_room([request(CPU=2), request(CPU=2)])
    assert machine.available_dict() == machine.total_dict()
    machine.check()


def test_wildcard_and_indexed_requests_share_the_bundles() -> None:
    machine = with_group(request(CPU=1), request(CPU=2))
    any_of_it = machine.allocate(request(CPU=1).in_group(G, -1))
    second = machine.allocate(request(CPU=2).in_group(G, 1))
    assert any_of_it is not None
    assert second is not None
    assert machine.allocate(request(CPU=1).in_group(G, 0)) is None, "three CPUs in all"
    assert machine.allocate(request(CPU=0.1).in_group(G, -1)) is None
    machine.release(any_of_it)
    assert machine.allocate(request(CPU=1).in_group(G, 0)) is not None
    assert not machine.feasible(request(CPU=1.5).in_group(G, 0))
    assert not machine.feasible(request(CPU=1).in_group(G, 2))
    assert not machine.feasible(request(CPU=1).in_group(H, -1))
    machine.check()


def test_gpus_in_a_bundle_are_the_bundles() -> None:
    machine = with_group(request(GPU=1), request(GPU=1), request(GPU=0.5))
    second = machine.allocate(request(GPU=1).in_group(G, 1))
    assert second is not None
    assert second.devices == (("G1", ONE),)
    half = machine.allocate(request(GPU=0.5).in_group(G, 2))
    assert half is not None
    assert half.devices == (("G2", ONE // 2),)
    outside = machine.allocate(request(GPU=0.5))
    assert outside is not None
    assert outside.device_ids == ["G2"]
    whole = machine.allocate(request(GPU=1).in_group(G, -1))
    assert whole is not None
    assert whole.device_ids == ["G0"]
    assert machine.allocate(request(GPU=0.1).in_group(G, -1)) is None
    machine.check()


def test_a_bundle_may_have_one_gpu_and_a_fraction() -> None:
    machine = with_group(request(GPU=1.5))
    assert machine.available_dict()["GPU"] == 1.5
    whole = machine.allocate(request(GPU=1).in_group(G, 0))
    half = machine.allocate(request(GPU=0.5).in_group(G, 0))
    assert whole is not None
    assert half is not None
    assert whole.device_ids != half.device_ids
    machine.check()


def test_cpus_are_lent_inside_the_group() -> None:
    machine = with_group(request(CPU=1))
    parent = machine.allocate(request(CPU=1).in_group(G, 0))
    assert parent is not None
    machine.release_cpus(parent)
    assert machine.available_dict()["CPU"] == 3.0
    child = machine.allocate(request(CPU=1).in_group(G, -1))
    assert child is not None
    assert not machine.reacquire_cpus(parent)
    machine.release(child)
    assert machine.reacquire_cpus(parent)
    machine.check()


def test_giving_back() -> None:
    machine = with_group(request(CPU=1))
    assert machine.prepare(G, {1: request(CPU=1), 2: request(CPU=1)})
    with pytest.raises(ValueError, match=r"bundles \[2\] of group a+ are here already"):
        machine.prepare(G, {2: request(CPU=1), 3: request(CPU=1)})
    machine.unprepare(G, [0, 1, 2, 9])
    machine.unprepare(H, [0])
    assert machine.available_dict()["CPU"] == 3.0, "the committed one stays"
    lease = machine.allocate(request(CPU=1).in_group(G, 0))
    assert lease is not None
    with pytest.raises(RuntimeError, match="still in use"):
        machine.remove_group(G)
    machine.release(lease)
    machine.remove_group(G)
    machine.remove_group(G)
    with pytest.raises(ValueError, match="not live"):
        machine.release(lease)
    assert machine.available_dict() == machine.total_dict()


def test_check_notices_what_a_pool_should_not_have() -> None:
    machine = with_group(request(CPU=1))
    machine._pools[G]._vector.add(f"CPU_group_{G}", ONE)
    with pytest.raises(RuntimeError, match="offers"):
        machine.check()


def test_parts_of_devices() -> None:
    devices = DeviceAllocator({("a", 0): ONE, ("b", 0): ONE // 2})
    assert devices.feasible(ONE)
    assert not devices.feasible(2 * ONE)
    assert devices.allocate(ONE // 2, lambda device: device[0] == "a") == [(("a", 0), ONE // 2)]
    assert devices.allocate(ONE) is None
    assert devices.allocate(ONE // 2) == [(("a", 0), ONE // 2)]
    devices.add({("c", 1): ONE})
    assert devices.allocate(ONE + ONE // 2, mixed=True) == [(("c", 1), ONE), (("b", 0), ONE // 2)]
    devices.check()

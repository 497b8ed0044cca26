"""A node's resources under any sequence of leases, blocks and ends, against a model of plain dictionaries."""

from __future__ import annotations

from fractions import Fraction

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from skate._c.resources import UNITS_PER_ONE
from skate.core.resources import Allocation, NodeResources, ResourceSet

gpu_amounts = st.one_of(
    st.just(0),
    st.integers(1, UNITS_PER_ONE),
    st.sampled_from([UNITS_PER_ONE // 2, UNITS_PER_ONE // 3, UNITS_PER_ONE]),
    st.integers(1, 4).map(lambda whole: whole * UNITS_PER_ONE),
)
requests = st.fixed_dictionaries(
    {"CPU": st.one_of(st.integers(0, 3 * UNITS_PER_ONE), st.just(UNITS_PER_ONE)), "GPU": gpu_amounts},
    optional={"x": st.integers(0, 2 * UNITS_PER_ONE), "absent": st.integers(0, 1)},
)


class NodeModel(RuleBasedStateMachine):
    """The model keeps what each lease holds, in fractions of one; the node must agree after every step."""

    leases = Bundle("leases")

    @initialize(
        cpus=st.integers(0, 4 * UNITS_PER_ONE), gpus=st.integers(0, 3), x=st.integers(0, 2 * UNITS_PER_ONE)
    )
    def start(self, cpus: int, gpus: int, x: int) -> None:
        totals = {"CPU": cpus, "GPU": gpus * UNITS_PER_ONE, "x": x}
        self.node = NodeResources(totals, [f"GPU-{device}" for device in range(gpus)])
        self.totals = {name: Fraction(units, UNITS_PER_ONE) for name, units in totals.items()}
        self.held: dict[Allocation, dict[str, Fraction]] = {}
        self.on_device: dict[Allocation, dict[str, Fraction]] = {}

    # -- the model

    def used(self, name: str) -> Fraction:
        return sum((held.get(name, Fraction(0)) for held in self.held.values()), Fraction(0))

    def free(self, name: str) -> Fraction:
        return self.totals.get(name, Fraction(0)) - self.used(name)

    def device_free(self, device: str) -> Fraction:
        return 1 - sum((parts.get(device, Fraction(0)) for parts in self.on_device.values()), Fraction(0))

    def devices_allow(self, amount: Fraction) -> bool:
        free = [self.device_free(device) for device in self.node.gpu_ids]
        if amount < 1:
            return amount == 0 or any(room >= amount for room in free)
        return amount.denominator == 1 and sum(room == 1 for room in free) >= amount

    # -- what happens

    @rule(target=leases, units=requests)
    def lease(self, units: dict[str, int]) -> Allocation | None:
        request = ResourceSet(units)
        wanted = {name: Fraction(amount, UNITS_PER_ONE) for name, amount in units.items() if amount}
        gpus = wanted.get("GPU", Fraction(0))
        before = {device: self.device_free(device) for device in self.node.gpu_ids}
        allowed = all(self.free(name) >= amount for name, amount in wanted.items()) and self.devices_allow(
            gpus
        )

        allocation = self.node.allocate(request)

        assert (allocation is not None) is allowed
        if allocation is None:
            return None
        assert self.node.feasible(request)
        parts = {device: Fraction(amount, UNITS_PER_ONE) for device, amount in allocation.devices}
        assert sum(parts.values()) == gpus
        if 0 < gpus < 1:
            ((device, _),) = parts.items()
            assert before[device] == min(room for room in before.values() if room >= gpus), "not the best fit"
        else:
            assert all(part == 1 and before[device] == 1 for device, part in parts.items())
        self.held[allocation] = wanted
        self.on_device[allocation] = parts
        return allocation

    @rule(allocation=leases)
    def block(self, allocation: Allocation | None) -> None:
        if allocation in self.held:
            self.node.release_cpus(allocation)
            self.held[allocation].pop("CPU", None)

    @rule(allocation=leases)
    def unblock(self, allocation: Allocation | None) -> None:
        if allocation not in self.held:
            return
        cpus = Fraction(allocation.request.get("CPU"), UNITS_PER_ONE)
        missing = cpus - self.held[allocation].get("CPU", Fraction(0))
        allowed = missing <= self.free("CPU")
        assert self.node.reacquire_cpus(allocation) is allowed
        if allowed and cpus:
            self.held[allocation]["CPU"] = cpus

    @rule(allocation=consumes(leases))
    def end(self, allocation: Allocation | None) -> None:
        if allocation in self.held:
            self.node.release(allocation)
            del self.held[allocation], self.on_device[allocation]

    # -- what must hold

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "node"):
            return
        self.node.check()
        available = {name: float(self.free(name)) for name in self.totals if self.free(name)}
        assert self.node.available_dict() == available
        assert self.node.live == set(self.held)
        assert all(self.device_free(device) >= 0 for device in self.node.gpu_ids)

    def teardown(self) -> None:
        """As Ray's own tests end: when all is given back, everything is available."""
        for allocation in self.held:
            self.node.release(allocation)
        if hasattr(self, "node"):
            assert self.node.available_dict() == self.node.total_dict()
            self.node.check()


NodeModel.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
TestNodeModel = NodeModel.TestCase

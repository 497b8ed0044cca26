"""Requests for resources, and what a node has of them: CPUs and custom resources by amount, GPUs one by one.

State owned here: for each node, totals, what is available, which GPU has how much free, and the allocations
that hold the difference (`NodeResources`). Amounts are integers in units of 1/10,000 (`skate._c.resources`);
floats appear only where a user reads or writes them. Invariants, checked by `check()`: available plus what
the live allocations hold is the total, resource by resource and GPU by GPU; so nothing ever runs over a
limit.

Called by the node manager's admission (allocate, release, the CPUs of a worker blocked in `get`), by owners
(`ResourceSet` is part of a scheduling class) and by the API (`task_request`, `actor_requests`). What placement groups
reserve of a node is in core.bundles. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from skate._c.resources import (
    MAX_UNITS,
    PREDEFINED,
    UNITS_PER_ONE,
    ResourceIndex,
    ResourceRequest,
    ResourceVector,
    from_units,
    to_units,
)
from skate.core import group_names
from skate.options import (
    ACCELERATOR_PREFIX,
    ActorOptions,
    TaskOptions,
    check_custom_name,
)

#: Asked of a node's `accelerator_type:X` resource by whoever wants that accelerator, as in Ray.
ACCELERATOR_UNITS = 10
#: Come as devices, as Ray has it: more than one of them are whole ones.
UNIT_RESOURCES = frozenset({"GPU", "TPU", "NPU", "HPU", "RBLN", "neuron_cores"})
#: Every device will do.
ANY_DEVICE: Callable[[Hashable], bool] = lambda _: True  # noqa: E731
#: Compiled requests kept by a node, before it starts afresh.
COMPILED_REQUESTS = 4096


class ResourceSet:
    """An immutable request, resource name -> units of 1/10,000. Hashable, cheap to compare, picklable.

    Zeros are dropped, so `num_gpus=0` and no `num_gpus` are the same request. Prints as users know it,
    {'CPU': 1.0}. `group` is the placement group (its id in hexadecimal) whose resources it asks for, None for none, and
    `index` the bundle, -1 for any.
    """

    __slots__ = ("_hash", "_items", "group", "index")

    def __init__(self, units: Mapping[str, int] | None = None) -> None:
        """Raises ValueError for an amount below 0 or over MAX_UNITS, TypeError for what is no int."""
        for name, amount in (units or {}).items():
            if type(amount) is not int:
                raise TypeError(f"units of {name!r} must be an int (1/10,000 each), got {amount!r}")
            if not 0 <= amount <= MAX_UNITS:
                raise ValueError(f"units of {name!r} must be between 0 and {MAX_UNITS}, got {amount}")
        self._items = tuple(sorted((name, amount) for name, amount in (units or {}).items() if amount))
        self._hash = hash(self._items)
        self.group: str | None = None
        self.index = -1
        for name, _ in self._items:
            found = group_names.parse(name)
            if found is not None:
                self.group = found.group
                self.index = max(self.index, found.bundle)

    @classmethod
    def from_options(
        cls,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: float | None = None,
        resources: Mapping[str, float] | None = None,
        *,
        default_cpus: float = 1,
        accelerator_type: str | None = None,
    ) -> ResourceSet:
        """The request that options ask for; None means not given, and `num_cpus` is `default_cpus` then.

        `memory` is in bytes and loses its fraction, as in Ray. Raises ValueError for an amount that is negative or not
        finite, for more than one of what comes as devices and a fraction, and for a predefined resource among
        `resources`; TypeError for what is no number.
        """
        units = {name: to_units(amount, name) for name, amount in (resources or {}).items()}
        for name in units:
            check_custom_name(name)
        units["CPU"] = to_units(default_cpus if num_cpus is None else num_cpus, "num_cpus")
        units["GPU"] = to_units(0 if num_gpus is None else num_gpus, "num_gpus")
        for name in UNIT_RESOURCES & units.keys():
            if units[name] > UNITS_PER_ONE and units[name] % UNITS_PER_ONE:
                raise ValueError(
                    f"{'num_gpus' if name == 'GPU' else name} over 1 must be a whole number, got "
                    f"{from_units(units[name])}: a fraction is a share of one {name}"
                )
        memory_units = to_units(0 if memory is None else memory, "memory")
        units["memory"] = memory_units - memory_units % UNITS_PER_ONE
        if accelerator_type is not None:
            units[ACCELERATOR_PREFIX + accelerator_type] = ACCELERATOR_UNITS
        return cls(units)

    @classmethod
    def from_floats(cls, amounts: Mapping[str, float]) -> ResourceSet:
        """The set of amounts as users write them, {'CPU': 1.5}. Raises as `to_units` does."""
        return cls({name: to_units(amount, name) for name, amount in amounts.items()})

    def get(self, name: str) -> int:
        """Units asked of `name`; 0 where it is not asked for."""
        for known, amount in self._items:
            if known == name:
                return amount
        return 0

    def items(self) -> tuple[tuple[str, int], ...]:
        """(name, units) pairs, sorted by name, no zeros."""
        return self._items

    def units(self) -> dict[str, int]:
        return dict(self._items)

    def to_dict(self) -> dict[str, float]:
        """As users read it: {'CPU': 1.0}."""
        return {name: from_units(amount) for name, amount in self._items}

    def in_group(self, group: str, index: int) -> ResourceSet:
        """The same request, of a placement group's resources: of its bundle `index`, or of any (-1)."""
        return ResourceSet(group_names.asked_of_group(group, index, self.units()))

    def plain(self) -> dict[str, int]:
        """name -> units as the user wrote it, also where it is a placement group's."""
        return self.units() if self.group is None else group_names.plain(self.units())

    def asks_of(self, name: str) -> int:
        """Units asked of `name`, or of `name` in a placement group."""
        return self.get(name if self.group is None else group_names.in_group(name, self.group))

    def only(self, name: str) -> ResourceSet:
        """The part of this request that asks for `name`, or for `name` in a placement group."""
        if self.group is None:
            return ResourceSet({name: self.get(name)})
        names = (
            group_names.in_group(name, self.group),
            group_names.in_group(name, self.group, self.index),
        )
        return ResourceSet({each: self.get(each) for each in names})

    def without(self, name: str) -> ResourceSet:
        """All of this request but `only(name)`."""
        part = self.only(name)
        return ResourceSet({each: units for each, units in self._items if each not in part})

    def overlaps(self, other: ResourceSet) -> bool:
        """Whether both ask for some of the same. Bundles themselves do not count: they never run out."""
        if self.group != other.group:
            return False
        names = other if self.group is None else other.without(group_names.BUNDLE)
        return any(self.get(name) for name in names)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, ResourceSet) and self._items == other._items

    def __reduce__(self) -> tuple[type[ResourceSet], tuple[dict[str, int]]]:
        return ResourceSet, (dict(self._items),)  # not the hash: strings hash differently in each process

    def __repr__(self) -> str:
        return repr(self.to_dict())


def task_request(options: TaskOptions) -> ResourceSet:
    """What a task holds while it runs: 1 CPU unless told otherwise. Raises as `from_options`."""
    return ResourceSet.from_options(
        options.num_cpus,
        options.num_gpus,
        options.memory,
        options.resources,
        default_cpus=1,
        accelerator_type=options.accelerator_type,
    )


class ActorRequests(NamedTuple):
    """What an actor asks for."""

    held: ResourceSet  #: kept for as long as the actor lives
    placement: ResourceSet  #: what a node must have free for the actor to be put there


def actor_requests(options: ActorOptions) -> ActorRequests:
    """What an actor holds and what placing it needs, by Ray's rule. Raises as `ResourceSet.from_options`.

    An actor that names no resource (memory does not count) is placed where 1 CPU is free but holds none, so
    that many idle actors fit on a small machine; one that names any resource holds 1 CPU unless `num_cpus`
    says otherwise.
    """
    named = (options.num_cpus, options.num_gpus, options.accelerator_type)
    plain = all(value is None for value in named) and not options.resources

    def request(default_cpus: int) -> ResourceSet:
        return ResourceSet.from_options(
            options.num_cpus,
            options.num_gpus,
            options.memory,
            options.resources,
            default_cpus=default_cpus,
            accelerator_type=options.accelerator_type,
        )

    return ActorRequests(held=request(0 if plain else 1), placement=request(1))


class DeviceAllocator:
    """Which part of which GPU is free. A fraction packs onto one device, whole numbers take whole devices.

    A fraction goes to the device that it fills best (the least free one that has room, the first of equals),
    so that whole devices stay whole for those who need them.
    """

    def __init__(self, devices: int | Mapping[Any, int]) -> None:
        """`devices`: how many, numbered from 0; or device -> units that are there, of a part of them."""
        whole = dict.fromkeys(range(devices), UNITS_PER_ONE) if isinstance(devices, int) else devices
        self._size: dict[Any, int] = dict(whole)  #: device -> units that are there
        self._free = dict(self._size)  #: device -> units free
        self._held: dict[Any, int] = {}  #: device -> units held, no zeros; the same fact, counted apart

    def __len__(self) -> int:
        return len(self._free)

    def add(self, devices: Mapping[Any, int]) -> None:
        """More devices, or parts of them; none of them is known yet."""
        self._size.update(devices)
        self._free.update(devices)

    @property
    def free_units(self) -> tuple[int, ...]:
        """Units free on each device."""
        return tuple(self._free.values())

    def feasible(self, units: int) -> bool:
        """Whether an idle machine could grant `units`."""
        return self._choose(units, self._size, ANY_DEVICE) is not None

    def allocate(
        self, units: int, may: Callable[[Any], bool] | None = None, *, mixed: bool = False
    ) -> list[tuple[Any, int]] | None:
        """(device, units) pairs that make up `units`, or None where no such devices are free now.

        `may` says which devices will do. 0 units are no devices. More than one device and a fraction is granted to
        those who do not run on it themselves alone (`mixed`: a bundle).
        """
        if units < 0:
            raise ValueError(f"cannot allocate {units} units of a GPU")
        parts = self._choose(units, self._free, may or ANY_DEVICE, mixed)
        for device, part in parts or ():
            self._free[device] -= part
            self._held[device] = self._held.get(device, 0) + part
        return parts

    @staticmethod
    def _choose(
        units: int, free: Mapping[Any, int], may: Callable[[Any], bool], mixed: bool = False
    ) -> list[tuple[Any, int]] | None:
        whole, fraction = divmod(units, UNITS_PER_ONE)
        if fraction and whole and not mixed:
            return None
        idle = [device for device, part in free.items() if part == UNITS_PER_ONE and may(device)]
        if len(idle) < whole:
            return None
        chosen = idle[:whole]
        parts = [(device, UNITS_PER_ONE) for device in chosen]
        if fraction:
            room = [
                (part, device)
                for device, part in free.items()
                if part >= fraction and device not in chosen and may(device)
            ]
            if not room:
                return None
            parts.append((min(room)[1], fraction))
        return parts

    def release(self, parts: Sequence[tuple[Any, int]]) -> None:
        """Gives `parts` back. Raises ValueError, and changes nothing, for what is not held."""
        returned: dict[Any, int] = {}
        for device, part in parts:
            returned[device] = returned.get(device, 0) + part
        for device, part in returned.items():
            if part <= 0 or self._held.get(device, 0) < part:
                raise ValueError(
                    f"releasing {from_units(part)} of GPU {device}, of which "
                    f"{from_units(self._held.get(device, 0))} is held (released twice?)"
                )
        for device, part in returned.items():
            self._free[device] += part
            self._held[device] -= part
            if not self._held[device]:
                del self._held[device]

    def held(self) -> dict[Any, int]:
        """Units held of each device, no zeros."""
        return dict(self._held)

    def check(self) -> None:
        """Raises RuntimeError if a device's free and held parts are not what there is of it."""
        for device, free in self._free.items():
            size = self._size[device]
            if not 0 <= free <= size <= UNITS_PER_ONE or free + self._held.get(device, 0) != size:
                raise RuntimeError(f"GPU {device}: {free} units free and {self._held.get(device, 0)} held")


class Allocation:
    """What one lease holds on a node, from `NodeResources.allocate` to `release`. Compares by identity.

    `devices` are (GPU id, units) pairs, ids as in CUDA_VISIBLE_DEVICES. Only `NodeResources` changes it.
    """

    __slots__ = ("_parts", "cpus_held", "devices", "request")

    def __init__(
        self, request: ResourceSet, devices: tuple[tuple[str, int], ...], parts: tuple[tuple[Any, int], ...]
    ) -> None:
        self.request = request
        self.devices = devices
        self.cpus_held = True  #: False while its worker is blocked in get or wait
        self._parts = parts  #: the devices again, by index

    @property
    def device_ids(self) -> list[str]:
        """The GPU ids alone, for CUDA_VISIBLE_DEVICES."""
        return [device for device, _ in self.devices]

    def __repr__(self) -> str:
        state = "" if self.cpus_held else ", cpus given back"
        return f"Allocation({self.request}, devices={list(self.devices)}{state})"


class NodeResources:
    """One node's resources: what there is, what is free, who holds the rest.

    `totals` is in units; `gpu_ids` names its GPUs, one for each whole unit of "GPU". Raises ValueError where
    the two differ. The methods that take an allocation raise ValueError for one that is not live here.
    """

    def __init__(self, totals: Mapping[str, int], gpu_ids: Sequence[str] = ()) -> None:
        if totals.get("GPU", 0) != len(gpu_ids) * UNITS_PER_ONE:
            raise ValueError(f"{from_units(totals.get('GPU', 0))} GPUs need as many ids, got {list(gpu_ids)}")
        self.gpu_ids = tuple(gpu_ids)
        self._index = ResourceIndex()
        self._vector = ResourceVector(self._index, totals)
        self._devices = DeviceAllocator(len(gpu_ids))
        self._live: set[Allocation] = set()  #: released ones leave at once
        self._compiled: dict[ResourceSet, ResourceRequest] = {}

    def feasible(self, request: ResourceSet) -> bool:
        """Whether the node could ever grant `request`, if it were idle."""
        return self._vector.could_fit(self._compile(request)) and self._devices.feasible(
            request.asks_of("GPU")
        )

    def allocate(self, request: ResourceSet) -> Allocation | None:
        """Grants all of `request`, or nothing and returns None.

        A fraction of a GPU needs one device that has so much free: two halves on two devices are not a whole.
        """
        compiled = self._compile(request)
        if not self._vector.fits(compiled):
            return None
        parts = self._take_devices(request)
        if parts is None:
            return None
        self._vector.reserve(compiled)
        return self._note(request, parts)

    def _take_devices(self, request: ResourceSet) -> list[tuple[Any, int]] | None:
        return self._devices.allocate(request.asks_of("GPU"))

    def _device_id(self, device: Any) -> str:
        identity: str = self.gpu_ids[device]
        return identity

    def _note(self, request: ResourceSet, parts: list[tuple[Any, int]]) -> Allocation:
        """The allocation of what was taken."""
        devices = tuple((self._device_id(device), part) for device, part in parts)
        allocation = Allocation(request, devices, tuple(parts))
        self._live.add(allocation)
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Ends `allocation`: all that it still holds is free again."""
        self._require_live(allocation)
        self._live.remove(allocation)
        self._vector.release(self._compile(self._held(allocation)))
        self._devices.release(allocation._parts)

    def release_cpus(self, allocation: Allocation) -> None:
        """Frees the CPUs of a lease whose worker is blocked, nothing else. Twice is as good as once."""
        self._require_live(allocation)
        if allocation.cpus_held:
            self._vector.release(self._compile(allocation.request.only("CPU")))
            allocation.cpus_held = False

    def reacquire_cpus(self, allocation: Allocation) -> bool:
        """Takes the CPUs again before the worker goes on; False, changing nothing, while they are taken."""
        self._require_live(allocation)
        if not allocation.cpus_held:
            allocation.cpus_held = self._vector.reserve(self._compile(allocation.request.only("CPU")))
        return allocation.cpus_held

    def available_dict(self) -> dict[str, float]:
        """What is free, as users read it; what is used up is left out, as in Ray."""
        return {name: from_units(units) for name, units in self._vector.as_dict().items()}

    def available_units(self) -> dict[str, int]:
        """What is free, in units; what is used up is left out."""
        return self._vector.as_dict()

    def total_dict(self) -> dict[str, float]:
        """What there is, as users read it."""
        return {name: from_units(units) for name, units in self._vector.total_dict().items()}

    def utilization(self) -> float:
        """The used share of the scarcest resource, 0.0 to 1.0."""
        return self._vector.utilization()

    @property
    def live(self) -> frozenset[Allocation]:
        """The allocations not released yet."""
        return frozenset(self._live)

    def check(self) -> None:
        """Raises RuntimeError if what is free and what is held do not add up to what there is."""
        self._devices.check()
        held: dict[str, int] = {}
        on_devices: dict[Any, int] = {}
        for allocation in self._live:
            for name, units in self._held(allocation).items():
                held[name] = held.get(name, 0) + units
            for device, part in allocation._parts:
                on_devices[device] = on_devices.get(device, 0) + part
        for name, total in self._vector.total_dict().items():
            available = self._vector.available(name)
            if not 0 <= available <= total or available + held.pop(name, 0) != total:
                raise RuntimeError(
                    f"{name}: {available} units free do not make {total} with what {self._live} hold"
                )
        if held:
            raise RuntimeError(f"held without being part of the node: {held}")
        if on_devices != self._devices.held():
            raise RuntimeError(f"of the GPUs {self._devices.held()} is held, {on_devices} by {self._live}")

    @staticmethod
    def _held(allocation: Allocation) -> ResourceSet:
        if allocation.cpus_held:
            return allocation.request
        return allocation.request.without("CPU")

    def _require_live(self, allocation: Allocation) -> None:
        if allocation not in self._live:
            raise ValueError(f"{allocation} is not live on this node (released twice?)")

    def _compile(self, request: ResourceSet) -> ResourceRequest:
        compiled = self._compiled.get(request)
        if compiled is None:
            if len(self._compiled) >= COMPILED_REQUESTS:
                self._forget_requests()
            compiled = self._compiled[request] = ResourceRequest(self._index, request.units())
        return compiled

    def _forget_requests(self) -> None:
        """Starts the table afresh, and drops the names that only requests knew."""
        asked = {name for request in self._compiled for name in request}
        for name in asked - set(self._vector.total_dict()) - set(PREDEFINED):
            self._index.forget(name)
        self._compiled.clear()

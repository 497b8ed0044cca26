"""What this machine has for skate to use: CPUs, GPUs, memory; as a container sees it, not the host.

Owns no state; reads /proc, /sys/fs/cgroup and the environment. Called once by the node manager (or by `init`
on its behalf) before the first worker starts. Takes well under 5 ms, except where GPUs can only be counted by
running nvidia-smi. What cannot be read is taken as absent: detection never fails a start-up. The functions
take `root`, the folder that stands for `/`, so that tests can describe a machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from skate._c.resources import UNITS_PER_ONE, to_units
from skate.options import ACCELERATOR_PREFIX, check_custom_name

#: The object store's share of the available memory; tasks' `memory=` gets the rest.
STORE_SHARE = 0.3
#: and at least this, as in Ray, where next to nothing is available: the store takes memory as objects come
STORE_FLOOR_BYTES = 75 << 20
#: nvidia-smi can hang on a broken driver.
NVIDIA_SMI_TIMEOUT_S = 3.0
#: A cgroup limit from here on means "no limit" (cgroup v1 writes almost 2**63).
NO_LIMIT_BYTES = 1 << 60


def detect_cpus(*, root: str = "/") -> int:
    """CPUs that this process may use, at least 1: the lesser of its affinity and its cgroup's quota.

    A quota is rounded down, as in Ray.
    """
    cpus = _affinity()
    for folder in _cgroup_folders(root, "cpu"):
        quota = _cpu_quota(folder)
        if quota is not None:
            cpus = min(cpus, int(quota))
    return max(1, cpus)


def detect_memory(*, root: str = "/") -> int:
    """Bytes that processes started now could use: what the machine has available, or the cgroup has left if
    less.

    The page cache counts as available. 0 if nothing can be read.
    """
    available = _meminfo_bytes(Path(root), "MemAvailable") or 0
    for folder in _cgroup_folders(root, "memory"):
        left = _memory_left(folder)
        if left is not None:
            available = min(available, left)
    return available


def detect_gpus(environ: Mapping[str, str] | None = None, *, root: str = "/") -> list[str]:
    """Ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them ("0", or "GPU-8a2c…").

    A CUDA_VISIBLE_DEVICES that is set is believed: "0,1", uuids, or none at all ("", "-1", "NoDevFiles").
    Otherwise the NVIDIA driver's folder in /proc counts them, or nvidia-smi where only that exists; blocks
    for at most NVIDIA_SMI_TIMEOUT_S then.
    """
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return parse_visible_devices(visible)
    count = len(_driver_folders(root)) or _count_by_nvidia_smi()
    return [str(device) for device in range(count)]


def parse_visible_devices(text: str) -> list[str]:
    """The ids in a CUDA_VISIBLE_DEVICES. As for CUDA, what follows a negative id is not visible."""
    if text.strip() == "NoDevFiles":
        return []
    ids: list[str] = []
    for part in text.split(","):
        device = part.strip()
        if not device or device.startswith("-"):
            break
        ids.append(device)
    return ids


def detect_accelerator_type(*, root: str = "/") -> str | None:
    """The first GPU's model as Ray's `accelerator_type` names it ("A100", "GeForce-RTX-5090"); None if
    unknown.
    """
    for folder in _driver_folders(root):
        model = re.search(r"^Model:\s*(.+?)\s*$", _read(folder / "information") or "", re.MULTILINE)
        if model:
            return accelerator_type(model[1])
    return None


def accelerator_type(model: str) -> str:
    """The short name of a GPU's product name.

    A datacenter card is its first word with a digit, with the words in capitals before it ("NVIDIA
    A100-SXM4-40GB" is "A100", "NVIDIA RTX PRO 6000 Blackwell" is "RTX-PRO-6000"); any other is its whole name
    with hyphens.
    """
    short = re.match(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)", model)
    if short and len(short[1]) > 1:
        return "-".join(short[1].split())
    return "-".join(re.sub(r"^NVIDIA\s+", "", model).split())


def default_resources(
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    object_store_memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    root: str = "/",
) -> tuple[dict[str, float], list[str], int]:
    """A node's resources: what `init` was told, and what was detected where it was told nothing (None).

    Returns the amounts (CPUs, GPUs, bytes, custom resources; without zeros), the GPU ids, one for each GPU,
    and the bytes of the object store: 30% of the available memory, the rest of which is `memory`, and at least
    STORE_FLOOR_BYTES. Raises ValueError for a negative amount, for no store, for GPUs that are not whole or
    more than CUDA_VISIBLE_DEVICES names, for a custom resource called CPU, GPU, memory or object_store_memory;
    TypeError for what is no number.
    """
    custom = _custom_amounts(resources or {})
    gpu_ids = _gpu_ids(num_gpus, os.environ if environ is None else environ, root)
    store_bytes, memory_bytes = _memory_split(memory, object_store_memory, root)
    amounts: dict[str, float] = {
        "CPU": float(detect_cpus(root=root) if num_cpus is None else _amount(num_cpus, "num_cpus")),
        "GPU": float(len(gpu_ids)),
        "memory": float(memory_bytes),
        "object_store_memory": float(store_bytes),
    }
    if gpu_ids:
        model = detect_accelerator_type(root=root)
        if model is not None:
            amounts[ACCELERATOR_PREFIX + model] = 1.0
    amounts.update(custom)
    return {name: amount for name, amount in amounts.items() if amount}, gpu_ids, store_bytes


# ------------------------------------------------------------------------------------- what init was told


def _amount(value: float, name: str) -> float:
    """`value`, found to be a valid amount. Raises as `to_units`."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r} of type str")
    to_units(value, name)
    return float(value)


def _custom_amounts(resources: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(resources, Mapping):
        raise TypeError(f"resources must be a dict of name -> amount, got {resources!r}")
    for name in resources:
        if not isinstance(name, str):
            raise TypeError(f"a resource's name must be a str, got {name!r}")
        check_custom_name(name)
    return {name: _amount(value, name) for name, value in resources.items()}


def _gpu_ids(num_gpus: float | None, environ: Mapping[str, str], root: str) -> list[str]:
    """One id for each of `num_gpus`; where it is more than the machine shows, the numbers go on (as in
    tests).
    """
    if num_gpus is None:
        return detect_gpus(environ, root=root)
    units = to_units(num_gpus, "num_gpus")
    if units % UNITS_PER_ONE:
        raise ValueError(f"a node's num_gpus must be a whole number, got {num_gpus!r}")
    count = units // UNITS_PER_ONE
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(device) for device in range(count)]
    ids = parse_visible_devices(visible)
    if count > len(ids):
        raise ValueError(
            f"num_gpus={count}, but CUDA_VISIBLE_DEVICES={visible!r} shows {len(ids)}: "
            "unset it, or ask for no more than it names"
        )
    return ids[:count]


def _memory_split(memory: float | None, store: float | None, root: str) -> tuple[int, int]:
    """Bytes for the object store and for tasks."""
    available = detect_memory(root=root) if memory is None or store is None else 0
    store_bytes = (
        max(int(available * STORE_SHARE), STORE_FLOOR_BYTES)
        if store is None
        else int(_amount(store, "object_store_memory"))
    )
    if store_bytes < 1:
        raise ValueError(
            "object_store_memory must be some bytes: tasks' large arguments and results lie there"
        )
    memory_bytes = max(0, available - store_bytes) if memory is None else int(_amount(memory, "memory"))
    return store_bytes, memory_bytes


# ------------------------------------------------------------------------------------- what the kernel says


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        return os.cpu_count() or 1


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _read_int(path: Path) -> int | None:
    """The number in a file; None for "max", or if there is none."""
    text = (_read(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _cgroup_folders(root: str, controller: str) -> Iterator[Path]:
    """The folders that limit this process, its own cgroup first, then each one above it.

    /proc/self/cgroup names a path for each hierarchy. In a container the mounted tree often begins at the
    container's own group, where that path does not exist; the walk upwards then ends at the mount's top,
    which is the right one.
    """
    mounts = Path(root, "sys/fs/cgroup")
    for line in (_read(Path(root, "proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if (
            controllers == ""
        ):  # version 2; beside version 1 it is mounted at unified/, with no controllers in it
            top = mounts
        elif controller in controllers.split(","):
            top = next(
                (f for f in (mounts / controllers, mounts / controller) if f.is_dir()), mounts / controller
            )
        else:
            continue
        folder = top.joinpath(*[part for part in path.split("/") if part not in ("", "..")])
        while True:
            yield folder
            if folder == top:
                break
            folder = folder.parent


def _cpu_quota(folder: Path) -> float | None:
    """CPUs that one cgroup may use; None for no limit. Version 2 first, then version 1."""
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) == 2:
        quota, period = words
    else:
        quota = (_read(folder / "cpu.cfs_quota_us") or "").strip()  # -1: no limit
        period = (_read(folder / "cpu.cfs_period_us") or "").strip()
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _memory_left(folder: Path) -> int | None:
    """Bytes that one cgroup may still take, its page cache counted as free; None for no limit."""
    limit, used = _read_int(folder / "memory.max"), _read_int(folder / "memory.current")
    prefix = ""
    if limit is None:
        limit, used = _read_int(folder / "memory.limit_in_bytes"), _read_int(folder / "memory.usage_in_bytes")
        prefix = "total_"  # version 1 counts the groups below in these fields only
    if limit is None or limit >= NO_LIMIT_BYTES:
        return None
    cache = {f"{prefix}inactive_file": 0, f"{prefix}active_file": 0}
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, amount = line.partition(" ")
        if name in cache and amount.isdecimal():
            cache[name] = int(amount)
    return max(0, limit - max(0, (used or 0) - sum(cache.values())))


def _meminfo_bytes(root: Path, field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _driver_folders(root: str) -> list[Path]:
    """One folder for each GPU that the NVIDIA driver shows here, in a container those that it was given."""
    try:
        return sorted(Path(root, "proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return []


def _count_by_nvidia_smi() -> int:
    """GPUs in the list of nvidia-smi (WSL has it, and no driver folder); 0 if there is none or it does not
    answer.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        listing = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(re.findall(r"^GPU \d+:", listing, re.MULTILINE))

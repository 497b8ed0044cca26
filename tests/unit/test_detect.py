"""Detection on machines described by a folder that stands for `/`."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from skate.node import detect
from skate.node.detect import (
    STORE_FLOOR_BYTES,
    accelerator_type,
    default_resources,
    detect_accelerator_type,
    detect_cpus,
    detect_gpus,
    detect_memory,
    parse_visible_devices,
)

GB = 1 << 30
V1_NO_LIMIT = 9223372036854771712


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 CPUs and 16 GB, 10 of them available, with no cgroup, no GPU and no nvidia-smi."""
    monkeypatch.setattr(detect, "_affinity", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    meminfo = f"MemTotal: {16 * GB // 1024} kB\nMemFree: 1024 kB\nMemAvailable:   {10 * GB // 1024} kB\n"
    write(tmp_path, {"proc/meminfo": meminfo, "proc/self/cgroup": ""})
    return tmp_path


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))


def write_nvidia_smi(root: Path, script: str) -> None:
    write(root, {"bin/nvidia-smi": f"#!/bin/sh\n{script}\n"})
    (root / "bin/nvidia-smi").chmod(stat.S_IRWXU)


# ---------------------------------------------------------------------------------------------------- CPUs


def test_cpus_without_limits_are_the_affinity(machine: Path) -> None:
    assert detect_cpus(root=str(machine)) == 8


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 2),  # 2.5, rounded down as in Ray
        ({"sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 1),  # never below one
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/a/b/cpu.max": "6400000 100000"}, 8),
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "400000 100000"}, 4),  # a container whose own path is not mounted
        ({"sys/fs/cgroup/a/b/cpu.max": "nonsense"}, 8),
        ({"sys/fs/cgroup/a/b/cpu.max": "100000 0"}, 8),
    ],
)
def test_cpu_quota_of_cgroup_2(machine: Path, files: dict[str, object], cpus: int) -> None:
    write(machine, {"proc/self/cgroup": "0::/a/b\n", **files})
    assert detect_cpus(root=str(machine)) == cpus


@pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/x", "cpu/docker/x", "cpu"])
def test_cpu_quota_of_cgroup_1(machine: Path, folder: str) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n0::/\n",
            f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": 300_000,
            f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": 100_000,
        },
    )
    assert detect_cpus(root=str(machine)) == 3


def test_no_quota_in_cgroup_1(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100_000,
        },
    )
    assert detect_cpus(root=str(machine)) == 8


def test_a_cgroup_path_does_not_lead_out_of_the_tree(machine: Path) -> None:
    write(machine, {"proc/self/cgroup": "0::/../../..\n", "cpu.max": "100000 100000"})
    assert detect_cpus(root=str(machine)) == 8


# -------------------------------------------------------------------------------------------------- memory


def test_memory_is_what_the_machine_has_available(machine: Path) -> None:
    assert detect_memory(root=str(machine)) == 10 * GB


def test_memory_of_cgroup_2_counts_the_page_cache_as_free(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": 4 * GB,
            "sys/fs/cgroup/memory.current": 3 * GB,
            "sys/fs/cgroup/memory.stat": f"anon {GB}\ninactive_file {GB}\nactive_file {GB}\n",
        },
    )
    assert detect_memory(root=str(machine)) == 3 * GB


def test_memory_of_cgroup_1(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "4:memory:/docker/x\n0::/\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": 4 * GB,
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": 3 * GB,
            "sys/fs/cgroup/memory/docker/x/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NO_LIMIT,
        },
    )
    assert detect_memory(root=str(machine)) == 2 * GB


@pytest.mark.parametrize("limit", ["max", V1_NO_LIMIT, 64 * GB])
def test_memory_limits_above_the_machine_do_nothing(machine: Path, limit: object) -> None:
    write(machine, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": limit})
    assert detect_memory(root=str(machine)) == 10 * GB


def test_a_cgroup_over_its_limit_has_nothing_left(machine: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": GB, "sys/fs/cgroup/memory.current": 2 * GB}
    write(machine, {"proc/self/cgroup": "0::/\n", **files})
    assert detect_memory(root=str(machine)) == 0


# ---------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ("0,1", ["0", "1"]),
        (" 2 , 3 ", ["2", "3"]),
        ("GPU-8a2c,GPU-77f0", ["GPU-8a2c", "GPU-77f0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["0"]),
    ],
)
def test_cuda_visible_devices_is_believed(machine: Path, visible: str, ids: list[str]) -> None:
    (machine / "proc/driver/nvidia/gpus/0000:00:1e.0").mkdir(parents=True)
    assert parse_visible_devices(visible) == ids
    assert detect_gpus({"CUDA_VISIBLE_DEVICES": visible}, root=str(machine)) == ids


def test_gpus_of_the_driver(machine: Path) -> None:
    for slot in ("0000:00:1e.0", "0000:00:1f.0"):
        write(
            machine,
            {f"proc/driver/nvidia/gpus/{slot}/information": "Model: \t NVIDIA A100-SXM4-40GB\nIRQ: 7\n"},
        )
    write_nvidia_smi(machine, "sleep 60")  # not asked
    assert detect_gpus({}, root=str(machine)) == ["0", "1"]
    assert detect_accelerator_type(root=str(machine)) == "A100"
    amounts, ids, _ = default_resources(environ={}, root=str(machine))
    assert amounts["GPU"] == 2.0
    assert amounts["accelerator_type:A100"] == 1.0
    assert ids == ["0", "1"]


def test_gpus_of_nvidia_smi(machine: Path) -> None:
    write_nvidia_smi(machine, "echo 'GPU 0: Tesla T4 (UUID: GPU-1)'; echo 'GPU 1: Tesla T4 (UUID: GPU-2)'")
    assert detect_gpus({}, root=str(machine)) == ["0", "1"]


@pytest.mark.parametrize(
    "script", ["exec /bin/sleep 60", "echo 'GPU 0: x'; exit 9", "echo No devices were found"]
)
def test_an_nvidia_smi_that_does_not_work_is_no_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(detect, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    write_nvidia_smi(machine, script)
    assert detect_gpus({}, root=str(machine)) == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA GeForce RTX 5090", "GeForce-RTX-5090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_accelerator_types_are_named_as_in_ray(model: str, name: str) -> None:
    assert accelerator_type(model) == name


# ------------------------------------------------------------------------------------------------ defaults


def test_defaults_of_a_machine_without_gpus(machine: Path) -> None:
    amounts, ids, store_bytes = default_resources(root=str(machine))
    assert store_bytes == int(10 * GB * 0.3)
    assert amounts == {
        "CPU": 8.0,
        "memory": float(10 * GB - store_bytes),
        "object_store_memory": float(store_bytes),
    }
    assert ids == []


def test_what_is_given_wins(machine: Path) -> None:
    amounts, ids, store_bytes = default_resources(
        2, 2, 5e9, 100e6, {"x": 1.5, "none": 0}, environ={}, root=str(machine)
    )
    assert amounts == {"CPU": 2.0, "GPU": 2.0, "memory": 5e9, "object_store_memory": 100e6, "x": 1.5}
    assert ids == ["0", "1"]
    assert store_bytes == 100_000_000
    assert default_resources(num_cpus=0, root=str(machine))[0].get("CPU") is None


def test_preset_ids_are_kept(machine: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}
    assert default_resources(num_gpus=2, environ=environ, root=str(machine))[1] == ["GPU-a", "GPU-b"]
    assert default_resources(environ=environ, root=str(machine))[0]["GPU"] == 3.0
    with pytest.raises(ValueError, match="num_gpus=4, but CUDA_VISIBLE_DEVICES='GPU-a,GPU-b,GPU-c' shows 3"):
        default_resources(num_gpus=4, environ=environ, root=str(machine))


def test_a_store_larger_than_what_is_available_leaves_no_memory(machine: Path) -> None:
    amounts, _, store_bytes = default_resources(object_store_memory=20 * GB, root=str(machine))
    assert store_bytes == 20 * GB
    assert "memory" not in amounts


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "2"}, TypeError, "num_cpus must be a number"),
        ({"num_gpus": 0.5}, ValueError, "must be a whole number, got 0.5"),
        ({"num_gpus": -1}, ValueError, "num_gpus"),
        ({"memory": float("nan")}, ValueError, "memory"),
        ({"object_store_memory": -5}, ValueError, "object_store_memory"),
        ({"object_store_memory": 0}, ValueError, "object_store_memory"),
        ({"resources": {"CPU": 1}}, ValueError, "use the option num_cpus"),
        ({"resources": {"GPU": 1}}, ValueError, "use the option num_gpus"),
        ({"resources": {"memory": 1}}, ValueError, "use the option memory"),
        ({"resources": {"object_store_memory": 1}}, ValueError, "use the option object_store_memory"),
        ({"resources": {"x": -1}}, ValueError, "'x' cannot be negative"),
        ({"resources": {3: 1}}, TypeError, "name must be a str"),
        ({"resources": ["x"]}, TypeError, "must be a dict"),
    ],
)
def test_defaults_refuse(
    machine: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        default_resources(**given, environ={}, root=str(machine))  # type: ignore[arg-type]


def test_a_machine_that_shows_nothing_is_one_with_its_cpus(tmp_path: Path) -> None:
    amounts, ids, store_bytes = default_resources(environ={"CUDA_VISIBLE_DEVICES": ""}, root=str(tmp_path))
    assert amounts == {"CPU": float(len(os.sched_getaffinity(0))), "object_store_memory": STORE_FLOOR_BYTES}
    assert (ids, store_bytes) == ([], STORE_FLOOR_BYTES)


def test_this_machine_is_detected_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        amounts, _, store_bytes = default_resources()
        took.append(time.perf_counter() - begin)
    assert amounts["CPU"] >= 1
    assert store_bytes > 0
    assert min(took) < 0.005

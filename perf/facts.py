"""What machine is this? Plain facts, from /proc and the standard library."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def load() -> float:
    """Runnable processes over the last minute, ours included."""
    return round(os.getloadavg()[0], 2)


def gather() -> dict[str, Any]:
    memory_kb = _field("/proc/meminfo", "MemTotal").split() or ["0"]
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory_kb[0]) / 1e6, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": load(),
    }

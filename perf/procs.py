"""What /proc says of a tree of processes (who is in it, memory, CPU time), and two calls of prctl."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/pid/stat after the command's name (state first), or None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """Every live process below `root`, in no order; zombies do not count as live, but their children do."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            children.setdefault(int(stat[1]), []).append(int(entry))
            if stat[0] == "Z":
                zombies.add(int(entry))
    found: list[int] = []
    to_see = [root]
    while to_see:
        below = children.get(to_see.pop(), [])
        found += below
        to_see += below
    return [pid for pid in found if pid not in zombies]


def name(pid: int) -> str:
    """The command's name, '?' if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def pss_bytes(pid: int) -> int:
    """Proportional set size: own pages, and a fair share of each shared one. 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def cpu_s(pid: int) -> float:
    """User and system time used so far."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / _TICKS_A_SECOND if stat else 0.0


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU time of each thread that the process has now, to the microsecond (`cpu_s` counts ticks of 10 ms)."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            seconds[task.parent.name] = int(task.read_text().split()[0]) / 1e9
        except OSError:
            continue  # the thread has ended meanwhile
    return seconds


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none gets out of sight."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

"""How near the arena comes to plain copies: `python perf/arena_bench.py [--mb 800] [--json FILE]`.

Each figure stands beside numpy's own copy, measured in the same run: `put` again and again against a
copy into pages touched before (bar: 80%), the first `put` against a copy into fresh shared pages (bar:
no slower), `get` (bar: 20 us), and small objects. The machine's first touch of memory that no process
has ever used is slower still: a warm-up round is thrown away, and fresh rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from skate._c.arena import Arena, copy_into
from skate.store.segment import create_segment

SLACK = 64 << 20


def seconds(body: Callable[[], object]) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def oid(n: int) -> bytes:
    return n.to_bytes(20, "big")


def put(arena: Arena, object_id: bytes, source: np.ndarray) -> None:
    writable = arena.allocate(object_id, source.nbytes)
    copy_into(writable, 0, source)
    writable.seal()


def fresh_put(source: np.ndarray, number: int) -> float:
    segment = create_segment(f"bench-{os.getpid()}-{number}", source.nbytes + SLACK)
    segment.unlink()
    arena = Arena.create(segment.fd, source.nbytes + SLACK)
    taken = seconds(lambda: put(arena, oid(1), source))
    arena.close()
    segment.close()
    return taken


def fresh_copy(source: np.ndarray, number: int) -> float:
    segment = create_segment(f"bench-{os.getpid()}-{number}", source.nbytes)
    segment.unlink()
    os.ftruncate(segment.fd, source.nbytes)
    target = np.frombuffer(mmap.mmap(segment.fd, source.nbytes), np.uint8)
    taken = seconds(lambda: np.copyto(target, source))
    segment.close()
    return taken


def large(mb: int) -> dict[str, float]:
    source = np.ones(mb << 20, np.uint8)
    result: dict[str, float] = {}

    rounds = [(fresh_copy(source, 2 * n), fresh_put(source, 2 * n + 1)) for n in range(4)][1:]
    result["fresh_copy_s"] = statistics.median(copy for copy, _ in rounds)
    result["fresh_put_s"] = statistics.median(put_ for _, put_ in rounds)

    segment = create_segment(f"bench-{os.getpid()}", source.nbytes + SLACK)
    segment.unlink()
    arena = Arena.create(segment.fd, source.nbytes + SLACK)
    target = np.ones_like(source)
    puts, copies, gets = [], [], []
    for n in range(11):
        copies.append(seconds(lambda: np.copyto(target, source)))
        puts.append(seconds(lambda n=n: put(arena, oid(n), source)))
        start = time.perf_counter()
        array = np.frombuffer(arena.get(oid(n)), np.uint8)
        gets.append(time.perf_counter() - start)
        assert array[-1] == 1
        del array
        arena.delete(oid(n))
    result["warm_copy_gb_s"] = source.nbytes / statistics.median(copies[1:]) / 1e9
    result["warm_put_gb_s"] = source.nbytes / statistics.median(puts[1:]) / 1e9
    result["get_us"] = statistics.median(gets[1:]) * 1e6
    result["warm_put_share"] = result["warm_put_gb_s"] / result["warm_copy_gb_s"]
    result["fresh_put_share"] = result["fresh_copy_s"] / result["fresh_put_s"]
    arena.close()
    segment.close()
    return result


def small(size: int, count: int) -> dict[str, float]:
    segment = create_segment(f"bench-{os.getpid()}", 64 << 20)
    segment.unlink()
    arena = Arena.create(segment.fd, 64 << 20)
    data = bytes(size)

    def cycle() -> None:
        for n in range(count):
            object_id = oid(n)
            writable = arena.allocate(object_id, size)
            copy_into(writable, 0, data)
            writable.seal()
            arena.get(object_id)
            arena.delete(object_id)

    def gets() -> None:
        for _ in range(count):
            arena.get(oid(0))

    cycle()
    result = {f"put_get_delete_{size}B_per_s": count / min(seconds(cycle) for _ in range(3))}
    arena.allocate(oid(0), size).seal()
    result[f"get_{size}B_per_s"] = count / min(seconds(gets) for _ in range(3))
    arena.close()
    segment.close()
    return result


def together(processes: int, size: int, count: int) -> dict[str, float]:
    """The same small cycle in several processes at once, on one mutex."""
    segment = create_segment(f"bench-{os.getpid()}", 64 << 20)
    segment.unlink()
    arena = Arena.create(segment.fd, 64 << 20)
    start = time.perf_counter()
    pids = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            data = bytes(size)
            for n in range(count):
                object_id = oid(number * count + n)
                writable = arena.allocate(object_id, size)
                copy_into(writable, 0, data)
                writable.seal()
                arena.get(object_id)
                arena.delete(object_id)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    taken = time.perf_counter() - start
    arena.check()
    arena.close()
    segment.close()
    return {f"put_get_delete_{size}B_by_{processes}_per_s": processes * count / taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=800)
    parser.add_argument("--json")
    options = parser.parse_args()
    result = large(options.mb) | small(1000, 50_000) | together(2, 1000, 50_000) | together(4, 1000, 25_000)
    for name, value in result.items():
        print(f"{name:36} {value:14,.3f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()

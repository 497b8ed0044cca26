"""Processes that die inside the arena: at every point of every call, at random points, by a real SIGKILL.

The points exist in a SKATE_FAULTS build only: one before and one after each store to shared memory, and
around the mutex, the repair and the reservation of memory. The build is made here, into a temporary
directory.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from budgets import ARENA_KILLS, ARENA_POINTS_STRIDE, ARENA_SIGKILLS

ROOT = Path(__file__).resolve().parents[2]
CAPACITY = 1 << 17


def oid(n: int) -> bytes:
    return n.to_bytes(20, "little")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The arena built with fault points, beside the usual one and under the same name."""
    source = ROOT / "pyx" / "skate" / "_c" / "arena.pyx"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not source.exists() or importlib.util.find_spec("Cython") is None or shutil.which(compiler) is None:
        pytest.skip("needs the source tree, Cython and a C compiler to build the arena with fault points")
    build = (
        tmp_path_factory.getbasetemp().parent
        / f"faults-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    )
    build.mkdir(exist_ok=True)
    library = build / ("arena" + sysconfig.get_config_var("EXT_SUFFIX"))
    with open(build / "lock", "w") as lock:  # one of the processes that run tests builds it for all
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(compiler, source, build, library)
    spec = importlib.util.spec_from_file_location("skate._c.arena", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FAULTS
    return module


def _build(compiler: str, source: Path, build: Path, library: Path) -> None:
    commands = [
        [sys.executable, "-m", "cython", "-3", "-I", "pyx", str(source), "-o", str(build / "arena.c")],
        [
            compiler,
            "-shared",
            "-fPIC",
            "-O2",
            "-w",
            "-DSKATE_FAULTS=1",
            f"-I{sysconfig.get_path('include')}",
            str(build / "arena.c"),
            "-o",
            str(library),
            "-lpthread",
        ],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def killed_at(module: ModuleType, point: int, body: Callable[[], object]) -> bool:
    """Run `body` in a child that dies at that fault point; False if it came through."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            module.fault_after(point)
            body()
            module.fault_after(-1)
            code = 0
        except BaseException as error:
            module.fault_after(-1)
            os.write(2, f"point {point}: {error!r}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def picture(arena: Any) -> tuple[Any, ...]:
    """What a user can see of an arena, but for what a death may leave: pids, ages, peaks."""
    stats = arena.stats()
    rows = arena.objects()
    mine = os.getpid()
    return (
        stats["used"],
        stats["pinned"],
        sorted((r["id"], r["size"], r["sealed"], r["doomed"], r["pins"].get(mine, 0)) for r in rows),
    )


class World:
    """A small arena in a state where every branch of the allocator is one call away."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.fd = os.memfd_create("crash")
        self.arena = module.Arena.create(self.fd, CAPACITY, max_objects=200, max_processes=8)
        for n in range(8):
            self.store(n, 1000 + 500 * n)
        for n in (1, 3, 4):
            self.arena.delete(oid(n))  # holes: one, and two that were joined
        self.pin = self.arena.get(oid(5))
        self.doomed = self.arena.get(oid(6))
        self.arena.delete(oid(6))
        self.arena.check()
        self.before = picture(self.arena)

    def store(self, n: int, size: int) -> None:
        writable = self.arena.allocate(oid(n), size)
        self.module.copy_into(writable, 0, bytes([n % 251]) * size)
        writable.seal()

    def close(self) -> None:
        self.pin = self.doomed = None
        self.arena.check()
        for row in self.arena.objects():
            assert row["pins"] == {}
            self.arena.delete(row["id"])
            assert not self.arena.contains(row["id"])
        stats = self.arena.stats()
        assert (stats["used"], stats["pinned"]) == (0, 0)
        assert stats["free_blocks"] == 1
        self.arena.check()
        self.arena.close()
        os.close(self.fd)


def calls(world: World) -> dict[str, Callable[[], object]]:
    arena = world.arena

    def sealed(n: int, size: int) -> None:
        writable = arena.allocate(oid(n), size)
        writable.seal()

    def pinned_and_deleted() -> None:
        pin = arena.get(oid(7))
        arena.delete(oid(7))
        del pin

    def full() -> None:
        with pytest.raises(MemoryError):
            arena.allocate(oid(100), CAPACITY)

    return {
        "into a hole that fits": lambda: sealed(100, 1536),
        "into a part of a hole": lambda: sealed(100, 500),
        "beyond the mark": lambda: sealed(100, 20_000),
        "dropped": lambda: arena.allocate(oid(100), 700) and None,
        "get and release": lambda: arena.get(oid(7)) and None,
        "get what is pinned": lambda: arena.get(oid(5)) and None,
        "delete between holes": lambda: arena.delete(oid(2)),
        "delete at the mark": lambda: arena.delete(oid(7)),
        "delete what is pinned": lambda: arena.delete(oid(5)),
        "evict": lambda: arena.get(oid(7)).evict(),
        "evict what others pin": lambda: arena.get(oid(5)).evict(),
        "delete under a pin": pinned_and_deleted,
        "attach and close": lambda: world.module.Arena.attach(world.fd).close(),
        "full": full,
        "look": lambda: (arena.stats(), arena.objects(), arena.victims(10**6), arena.check()),
    }


CALLS = [
    "into a hole that fits", "into a part of a hole", "beyond the mark", "dropped", "get and release",
    "get what is pinned", "delete between holes", "delete at the mark", "delete what is pinned",
    "evict", "evict what others pin", "delete under a pin", "attach and close", "full", "look",
]  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_death_at_every_point_of_a_call(faulty: ModuleType, name: str) -> None:
    """After each death: sound, and as before the call or after one of its steps, nothing else."""
    world = World(faulty)
    body = calls(world)[name]
    steps = {repr(world.before)}
    point, deaths = random.randrange(ARENA_POINTS_STRIDE), 0
    while True:
        died = killed_at(faulty, point, body)
        world.arena.check()  # this process is the next to lock, and repairs
        world.arena.allocate(b"probe" * 4, 100).seal()
        assert world.arena.delete(b"probe" * 4)
        for pid in {pid for row in world.arena.objects() for pid in row["pins"]} - {os.getpid()}:
            world.arena.reap(pid)
        world.arena.check()
        steps.add(repr(picture(world.arena)))
        assert bytes(memoryview(world.pin)) == bytes([5]) * 3500
        assert bytes(memoryview(world.doomed)) == bytes([6]) * 4000
        if not died:
            break
        deaths += 1
        if repr(picture(world.arena)) != repr(world.before):  # the call took effect: begin anew
            world.close()
            world = World(faulty)
            body = calls(world)[name]
        point += ARENA_POINTS_STRIDE
    assert deaths > 5 // ARENA_POINTS_STRIDE
    assert len(steps) <= 3, steps
    world.close()


def test_death_in_the_repair(faulty: ModuleType) -> None:
    """A process dies in a call, and all that try to repair die too, one point further each time."""
    world = World(faulty)
    for point in (20, 60, 100, 140):
        assert killed_at(faulty, point, lambda: world.arena.allocate(oid(100), 500) and None)
        repair = 0
        while killed_at(faulty, repair, lambda: world.arena.contains(oid(0))):
            repair += 1
        assert repair > 3
        world.arena.check()
        assert picture(world.arena)[2] == world.before[2]
    assert world.arena.stats()["recoveries"] > 4
    world.arena.allocate(oid(200), 5)
    world.close()


def test_death_in_reap(faulty: ModuleType) -> None:
    """The process that buries another one dies at every point in turn; the last one finishes the work."""
    world = World(faulty)

    def dies() -> None:
        kept = [world.arena.get(oid(n)) for n in (0, 0, 2, 5, 7)]
        kept += [world.arena.allocate(oid(100 + n), 300) for n in range(3)]
        world.arena.delete(oid(2))
        os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(faulty, -1, dies)
    (victim,) = {pid for row in world.arena.objects() for pid in row["pins"]} - {os.getpid()}
    point = 0
    while killed_at(faulty, point, lambda: world.arena.reap(victim)):
        point += 7
        world.arena.check()
    world.arena.check()
    assert point > 50
    assert {pid for row in world.arena.objects() for pid in row["pins"]} == {os.getpid()}
    assert world.arena.reap(victim) == 0
    world.close()


def random_calls(module: ModuleType, arena: Any, rng: random.Random) -> None:
    """A short life: puts, gets, deletes; objects are filled with the first byte of their id."""
    pins = []
    making = []
    while True:
        n = rng.randrange(30)
        action = rng.randrange(8)
        try:
            if action < 3:
                size = rng.choice([rng.randrange(300), rng.randrange(8000)])
                writable = arena.allocate(oid(n), size)
                module.copy_into(writable, 0, bytes([n]) * size)
                making.append(writable)
            elif action == 3 and making:
                making.pop(rng.randrange(len(making))).seal()
            elif action == 4 and making:
                making.pop().abort()
            elif action == 5:
                pins.append(arena.get(oid(n)))
            elif action == 6 and pins:
                pins.pop(rng.randrange(len(pins)))
            elif action == 7:
                arena.delete(oid(n))
        except (KeyError, MemoryError):
            pass


def assert_whole(arena: Any) -> None:
    """Sound; every sealed object is whole; nobody but us holds anything."""
    arena.check()
    for row in arena.objects():
        assert row["sealed"], row
        assert row["pins"] == {}
        data = bytes(memoryview(arena.get(row["id"])))
        assert data == row["id"][:1] * row["size"]


def test_thousands_of_deaths(faulty: ModuleType) -> None:
    """Children die at random points, sometimes several before anyone looks, and leave the arena sound."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    fd = os.memfd_create("crash")
    arena = faulty.Arena.create(fd, CAPACITY, max_objects=64, max_processes=16)
    stop = time.monotonic() + ARENA_KILLS / 50
    kills = 0
    while kills < ARENA_KILLS and time.monotonic() < stop:
        pids = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):  # at once, on the same mutex
            pid = os.fork()
            if pid == 0:
                try:
                    faulty.fault_after(
                        int(rng.expovariate(1 / 400)) if rng.random() < 0.9 else rng.randrange(20_000)
                    )
                    random_calls(faulty, arena, rng)
                finally:
                    os._exit(1)
            pids.append(pid)
            rng.random()
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"seed {seed}: a child failed instead of dying"
            kills += 1
        for pid in pids:
            arena.reap(pid)
        assert_whole(arena)
        if rng.random() < 0.05:
            for row in arena.objects():
                arena.delete(row["id"])
            assert arena.stats()["used"] == 0
            assert arena.stats()["free_blocks"] <= 1
    assert kills >= ARENA_KILLS / 10, "this machine is too slow for the test to mean anything"
    assert arena.stats()["recoveries"] > kills / 10
    arena.close()
    os.close(fd)


def test_sigkill_from_outside() -> None:
    """The usual build, killed by another process at a time of its own choosing."""
    from skate._c import arena as module

    rng = random.Random(5)
    fd = os.memfd_create("crash")
    arena = module.Arena.create(fd, CAPACITY, max_objects=64, max_processes=16)
    for _ in range(ARENA_SIGKILLS):
        pids = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    random_calls(module, arena, random.Random(rng.random()))
                finally:
                    os._exit(1)
            pids.append(pid)
            rng.random()
        time.sleep(rng.random() * 0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            arena.reap(pid)
        assert_whole(arena)
    arena.close()
    os.close(fd)


def test_usual_build_has_no_fault_points() -> None:
    from skate._c import arena as module

    if module.FAULTS:
        pytest.skip("this is a SKATE_FAULTS build")
    with pytest.raises(module.ArenaError, match="SKATE_FAULTS"):
        module.fault_after(1)

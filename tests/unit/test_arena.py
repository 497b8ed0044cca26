"""The arena's edges, one by one: sizes, fullness, fragmentation, lifetimes of buffers, forks, errors.

The arenas here are memfds: nothing of them is in /dev/shm, and they go with their last mapping.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from skate._c.arena import Arena, ArenaError, ArenaFull, NotMaking, ObjectExists, copy_into

MB = 1 << 20


def oid(n: int) -> bytes:
    return n.to_bytes(20, "big")


def store(arena: Arena, n: int, data: bytes, owner: bytes = b"") -> None:
    writable = arena.allocate(oid(n), len(data), owner)
    copy_into(writable, 0, data)
    writable.seal()


def in_child(body: Callable[[], object]) -> object:
    """What `body` returns in a forked child; the child ends without any clean-up."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result: object = body()
        except BaseException as error:
            result = repr(error)
        os.write(write, pickle.dumps(result))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else None


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test-arena")
    yield fd
    os.close(fd)


@pytest.fixture
def arena(fd: int) -> Iterator[Arena]:
    arena = Arena.create(fd, 8 * MB, max_processes=16)
    yield arena
    arena.check()
    arena.close()


def test_life_of_an_object(arena: Arena) -> None:
    writable = arena.allocate(oid(1), 5, b"owner")
    assert not arena.contains(oid(1))
    assert arena.get(oid(1)) is None
    copy_into(writable, 0, b"hello")
    arena.seal(oid(1))
    assert arena.contains(oid(1))
    pinned = arena.get(oid(1))
    assert pinned is not None
    assert bytes(pinned) == b"hello"
    assert (len(pinned), pinned.nbytes, pinned.object_id) == (5, 5, oid(1))
    (row,) = arena.objects()
    assert row["id"] == oid(1)
    assert row["size"] == 5
    assert row["sealed"]
    assert not row["doomed"]
    assert row["pins"] == {os.getpid(): 1}
    assert row["owner"] == b"owner"
    assert row["creator"] == os.getpid()
    assert arena.delete(oid(1))
    assert not arena.contains(oid(1))
    assert not arena.delete(oid(1))
    assert bytes(pinned) == b"hello"
    assert arena.objects()[0]["doomed"]
    arena.check()
    del pinned
    assert arena.stats()["used"] == 0
    assert arena.objects() == []


def test_zero_size(arena: Arena) -> None:
    store(arena, 1, b"")
    pinned = arena.get(oid(1))
    assert pinned is not None
    assert memoryview(pinned).nbytes == 0
    assert np.frombuffer(pinned, dtype=np.uint8, count=0).size == 0


def test_data_is_aligned(arena: Arena) -> None:
    for n, size in enumerate([1, 63, 64, 65, 1000, 4097]):
        array = np.frombuffer(arena.allocate(oid(n), size), dtype=np.uint8)
        assert array.ctypes.data % 64 == 0


def test_views_keep_the_pin_and_are_read_only(arena: Arena) -> None:
    store(arena, 1, b"abcdefgh")
    array = np.frombuffer(arena.get(oid(1)), dtype=np.uint8)
    part = array[2:4].reshape(2, 1)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError):
        array.flags.writeable = True
    del array
    arena.delete(oid(1))
    gc.collect()
    assert part.tolist() == [[ord("c")], [ord("d")]]
    assert arena.stats()["pinned"] == 64
    del part
    assert arena.stats()["used"] == 0


def test_pins_are_counted(arena: Arena) -> None:
    store(arena, 1, b"x")
    pins = [arena.get(oid(1)) for _ in range(5)]
    assert arena.objects()[0]["pins"] == {os.getpid(): 5}
    arena.check()
    pins.pop()
    assert arena.objects()[0]["pins"] == {os.getpid(): 4}
    assert arena.victims(1) == []
    pins.clear()
    assert arena.victims(1) == [(oid(1), 1)]


def test_dropped_without_seal_is_aborted(arena: Arena) -> None:
    def fails_halfway() -> None:
        writable = arena.allocate(oid(1), 100)
        memoryview(writable)[:3] = b"abc"
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fails_halfway()
    gc.collect()
    assert arena.stats()["objects"] == 0
    store(arena, 1, b"again")


def test_abort(arena: Arena) -> None:
    arena.allocate(oid(1), 100)  # dropped at once
    writable = arena.allocate(oid(1), 100)
    arena.abort(oid(1))
    for call in (writable.seal, writable.abort, lambda: arena.seal(oid(1)), lambda: arena.abort(oid(1))):
        with pytest.raises(NotMaking):
            call()
    with pytest.raises(BufferError):
        memoryview(writable)
    assert arena.stats()["used"] == 0


def test_abort_waits_for_views(arena: Arena) -> None:
    writable = arena.allocate(oid(1), 100)
    view = memoryview(writable)
    writable.abort()
    del writable
    store(arena, 1, b"another")  # its id is free, its memory is not
    view[:] = bytes(100)
    pinned = arena.get(oid(1))
    assert bytes(pinned) == b"another"
    assert arena.stats()["objects"] == 2
    view.release()
    del view
    gc.collect()
    assert arena.stats()["objects"] == 1


def test_sealed_is_immutable(arena: Arena) -> None:
    writable = arena.allocate(oid(1), 100)
    view = memoryview(writable)
    with pytest.raises(BufferError, match="1 writable views"):
        writable.seal()
    view.release()
    writable.seal()
    with pytest.raises(BufferError):
        copy_into(writable, 0, b"x")
    with pytest.raises(BufferError):
        copy_into(arena.get(oid(1)), 0, b"x")


def test_exists(arena: Arena) -> None:
    writable = arena.allocate(oid(1), 1)
    with pytest.raises(ObjectExists, match=oid(1).hex()):
        arena.allocate(oid(1), 1)
    writable.seal()
    with pytest.raises(KeyError):
        arena.allocate(oid(1), 1)


def test_deleted_while_being_made(arena: Arena) -> None:
    writable = arena.allocate(oid(1), 1)
    assert not arena.delete(oid(1)), "it may be made from a copy, and its maker give up before it seals"
    again = arena.allocate(oid(1), 2)
    with pytest.raises(NotMaking, match="deleted while"):
        writable.seal()
    again.seal()
    assert arena.objects()[0]["size"] == 2


def test_evict(arena: Arena) -> None:
    """Whoever has the only pin may delete the object, and no other that has come to its id."""
    store(arena, 1, b"old")
    ours, theirs = arena.get(oid(1)), arena.get(oid(1))
    assert ours.creator == os.getpid()
    assert ours.evict() is False
    assert arena.contains(oid(1))
    del theirs
    assert ours.evict() is True
    assert not arena.contains(oid(1))
    assert not arena.delete(oid(1))
    assert bytes(ours) == b"old"
    assert ours.evict() is None
    store(arena, 1, b"new")
    assert ours.evict() is None
    assert bytes(arena.get(oid(1))) == b"new"
    del ours
    assert arena.stats()["objects"] == 1


def test_delete_tells_of_a_copy(arena: Arena) -> None:
    """Of an object sealed as one that has a copy, or to be evicted while others read it; not of the next one."""
    arena.allocate(oid(1), 1).seal(copied=True)
    assert arena.contains(oid(1))
    assert not arena.delete(oid(1))
    assert not arena.contains(oid(1))
    store(arena, 1, b"x")
    pins = [arena.get(oid(1)), arena.get(oid(1))]
    assert pins[0].evict() is False
    assert not arena.delete(oid(1))
    del pins
    store(arena, 1, b"y")
    assert arena.delete(oid(1))


def test_id_of_a_doomed_object_is_free(arena: Arena) -> None:
    store(arena, 1, b"old")
    old = arena.get(oid(1))
    arena.delete(oid(1))
    store(arena, 1, b"new")
    assert bytes(old) == b"old"
    assert bytes(arena.get(oid(1))) == b"new"


@pytest.mark.parametrize("bad", [b"", b"short", bytes(21)])
def test_ids_are_20_bytes(arena: Arena, bad: bytes) -> None:
    for call in (arena.get, arena.contains, arena.delete, lambda i: arena.allocate(i, 1)):
        with pytest.raises(ValueError, match="20 bytes"):
            call(bad)
    for call in (arena.get, arena.seal, arena.abort):
        with pytest.raises(TypeError):
            call(None)


def test_bad_arguments(arena: Arena) -> None:
    with pytest.raises(ValueError):
        arena.allocate(oid(1), -1)
    with pytest.raises(ValueError):
        arena.allocate(oid(1), 1, b"x" * 25)
    with pytest.raises(TypeError):
        Arena()
    assert arena.reap(-1) == arena.reap(0) == arena.reap(os.getpid()) == 0
    assert arena.stats()["objects"] == 0


def test_exactly_full(arena: Arena) -> None:
    capacity = arena.stats()["capacity"]
    store(arena, 1, bytes(capacity))
    with pytest.raises(ArenaFull) as caught:
        arena.allocate(oid(2), 1)
    assert (caught.value.needed, caught.value.capacity, caught.value.largest_free) == (1, capacity, 0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.needed == 1
    arena.delete(oid(1))
    with pytest.raises(ArenaFull):
        arena.allocate(oid(2), capacity + 1)
    with pytest.raises(ArenaFull):
        arena.allocate(oid(2), 2**62)
    store(arena, 2, bytes(capacity))


def test_fragmentation_and_coalescing(arena: Arena) -> None:
    piece = 64 * 1024
    count = arena.stats()["capacity"] // piece
    for n in range(count):
        store(arena, n, bytes(piece))
    for n in range(0, count, 2):
        arena.delete(oid(n))
    arena.check()
    with pytest.raises(ArenaFull) as caught:
        arena.allocate(oid(1000), 2 * piece)
    assert caught.value.largest_free == piece
    assert arena.stats()["free_blocks"] == count // 2
    for n in range(1, count, 2):
        arena.delete(oid(n))
        arena.check()
    assert arena.stats()["free_blocks"] == 1
    store(arena, 1000, bytes(arena.stats()["capacity"]))


def test_any_fitting_block_is_found(arena: Arena) -> None:
    """One block fits, behind a thousand of its bin that are too small: a search by bins would miss it."""
    small, large = 64 * 64, 64 * 65  # a bin spans two units here
    n = 0
    while arena.stats()["largest_free"] >= large:
        store(arena, n, bytes(large if n == 3 else small))
        n += 1
    while rest := arena.stats()["largest_free"]:
        store(arena, 10_000, bytes(rest))
    for i in range(3, n, 2):  # the large one is freed first, so it is the last in its bin
        arena.delete(oid(i))
    assert arena.stats()["free_blocks"] > 500
    store(arena, n + 1, bytes(large))


def test_freed_pages_go_out_first(arena: Arena) -> None:
    for n in range(100):
        store(arena, n, bytes(100_000))
        arena.delete(oid(n))
    assert arena.stats()["high_water"] <= 100_032
    keep = [arena.allocate(oid(1000 + n), 1000) for n in range(3)]
    del keep[1]
    high = arena.stats()["high_water"]
    store(arena, 1, bytes(1000))
    assert arena.stats()["high_water"] == high


def test_largest_free_is_what_fits(arena: Arena) -> None:
    for n in range(20):
        store(arena, n, bytes(1000 * n))
    for n in range(0, 20, 3):
        arena.delete(oid(n))
    size = arena.stats()["largest_free"]
    with pytest.raises(ArenaFull) as caught:
        arena.allocate(oid(100), size + 1)
    assert caught.value.largest_free == size
    store(arena, 100, bytes(size))


def test_victims_are_the_longest_unused(arena: Arena) -> None:
    for n in range(5):
        store(arena, n, bytes(1000))
    assert [i for i, _ in arena.victims(10**9)] == [oid(n) for n in range(5)]
    assert arena.victims(1025) == [(oid(0), 1000), (oid(1), 1000)]
    assert arena.victims(0) == []
    pin = arena.get(oid(0))
    assert arena.victims(1) == [(oid(1), 1000)]
    del pin
    assert [i for i, _ in arena.victims(10**9)] == [oid(n) for n in (1, 2, 3, 4, 0)]
    assert [row["id"] for row in arena.objects()] == [oid(n) for n in (1, 2, 3, 4, 0)]


def test_too_many_objects(fd: int) -> None:
    arena = Arena.create(fd, MB, max_objects=10)
    for n in range(10):
        store(arena, n, b"x")
    with pytest.raises(ArenaFull, match="max_objects"):
        arena.allocate(oid(100), 1)
    arena.check()
    arena.delete(oid(3))
    store(arena, 100, b"x")
    arena.check()


def test_overhead_is_small(fd: int) -> None:
    arena = Arena.create(fd, 128 * MB)
    for n in range(100):
        arena.allocate(oid(n), MB).seal()
    used = os.fstat(fd).st_blocks * 512
    assert arena.stats()["overhead"] < 0.01 * 100 * MB
    assert used - arena.stats()["reserved"] < 0.01 * 100 * MB


def test_more_than_2_gb(fd: int) -> None:
    size = (2 << 30) + 12345
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < 3 * size:
        pytest.skip(f"needs {3 * size >> 20} MB of memory")
    arena = Arena.create(fd, 3 << 30)
    source = np.zeros(size, np.uint8)
    source[-1] = 7
    writable = arena.allocate(oid(1), size)
    assert copy_into(writable, 0, source) == size
    writable.seal()
    array = np.frombuffer(arena.get(oid(1)), np.uint8)
    assert array.size == size
    assert array[-1] == 7
    assert array[2**31] == 0
    del array
    arena.delete(oid(1))
    arena.check()


def test_copy_into() -> None:
    dest = bytearray(10)
    assert copy_into(dest, 3, b"abc") == 3
    assert dest == b"\0\0\0abc\0\0\0\0"
    assert copy_into(dest, 10, b"") == 0
    for offset in (-1, 8, 11, 2**62):
        with pytest.raises(ValueError, match="do not fit"):
            copy_into(dest, offset, b"abc")
    with pytest.raises(BufferError):
        copy_into(b"constant", 0, b"x")
    big = np.arange(100_000.0).reshape(100, 1000)
    target = np.zeros_like(big, order="F")
    copy_into(target, 0, np.asfortranarray(big))
    assert (target == big).all()
    with pytest.raises((BufferError, ValueError)):
        copy_into(bytearray(10**6), 0, big[:, ::2])
    when = np.array(["2020-01-01"], dtype="M8[s]")
    assert copy_into(dest, 0, when) == 8
    assert dest[:8] == when.tobytes()


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Callable[[int], int]:
    """A function that makes a file in a fresh tmpfs of so many bytes; to be called in a child process."""

    def make(size: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        new_mounts, new_user, private = 0x20000, 0x10000000, 0x44000
        path = str(tmp_path).encode()
        if libc.unshare(new_mounts | (new_user if os.getuid() else 0)) or (
            libc.mount(b"none", b"/", None, private, None)
            or libc.mount(b"tmpfs", path, b"tmpfs", 0, b"size=%d" % size)
        ):
            raise PermissionError(f"no tmpfs of our own: {os.strerror(ctypes.get_errno())}")
        return os.open(tmp_path / "arena", os.O_RDWR | os.O_CREAT)

    return make


def test_no_memory_behind_the_arena(small_tmpfs: Callable[[int], int]) -> None:
    """A /dev/shm smaller than the arena: full, and full again, and never a SIGBUS."""

    def body() -> object:
        arena = Arena.create(small_tmpfs(10 * MB), 64 * MB)
        with pytest.raises(ArenaFull) as caught:
            arena.allocate(oid(999), 20 * MB)
        room = caught.value.largest_free
        high = arena.stats()["reserved"]
        store(arena, 999, b"x" * room)  # what the error promises can be had
        arena.delete(oid(999))
        count = 0
        with pytest.raises(ArenaFull) as caught:
            for count in range(64):
                store(arena, count, b"x" * MB)
        arena.check()
        arena.delete(oid(0))
        store(arena, 0, b"y" * MB)
        for n in range(1, count):
            assert bytes(arena.get(oid(n))) == b"x" * MB
        arena.check()
        return count, room, high, str(caught.value)

    result = in_child(body)
    if "no tmpfs of our own" in str(result):
        pytest.skip(str(result))
    assert isinstance(result, tuple), result
    count, room, high, message = result
    assert 8 <= count <= 9
    assert 8 * MB < room < 10 * MB
    assert high == 0  # a request that could not be met has eaten up nothing
    assert "memory behind the arena is full" in message


def test_no_memory_for_the_tables(small_tmpfs: Callable[[int], int]) -> None:
    def body() -> object:
        try:
            Arena.create(small_tmpfs(64 * 1024), 64 * MB)
        except ArenaFull as error:
            return str(error)
        return None

    result = in_child(body)
    if "no tmpfs of our own" in str(result):
        pytest.skip(str(result))
    assert "tables" in str(result)


def test_attach_checks_what_it_opens(fd: int) -> None:
    with pytest.raises(ArenaError, match="no arena"):
        Arena.attach(fd)
    os.ftruncate(fd, MB)
    with pytest.raises(ArenaError, match="no arena"):
        Arena.attach(fd)
    with pytest.raises(OSError):
        Arena.attach(9999)
    arena = Arena.create(fd, MB)
    other = Arena.attach(fd)
    store(other, 1, b"x")
    assert arena.contains(oid(1))
    os.pwrite(fd, b"\xff", 8)
    with pytest.raises(ArenaError, match="another version"):
        Arena.attach(fd)


def test_bad_sizes(fd: int) -> None:
    for size in (0, 1 << 60):
        with pytest.raises((ValueError, OverflowError)):
            Arena.create(fd, size)


def test_close(fd: int) -> None:
    arena = Arena.create(fd, MB)
    store(arena, 1, b"abc")
    pinned = arena.get(oid(1))
    writable = arena.allocate(oid(2), 3)
    arena.close()
    arena.close()
    for call in (arena.stats, arena.check, arena.objects, lambda: arena.get(oid(1))):
        with pytest.raises(ArenaError, match="closed"):
            call()
    assert bytes(pinned) == b"abc"
    other = Arena.attach(fd)
    assert other.stats()["pinned"] == 128
    del pinned, writable
    assert other.stats()["pinned"] == 0
    other.check()


def test_processes_come_and_go(fd: int) -> None:
    arena = Arena.create(fd, MB, max_processes=3)
    second, third = Arena.attach(fd), Arena.attach(fd)
    with pytest.raises(ArenaError, match="max_processes"):
        Arena.attach(fd)
    second.close()
    second = Arena.attach(fd)
    del second, third
    for _ in range(5):  # children that never say goodbye: their slots are found dead

        def body() -> int:
            mine = Arena.attach(fd)
            store(mine, os.getpid(), b"x")
            return id(mine.get(oid(os.getpid())))

        assert isinstance(in_child(body), int)
    arena.check()


def test_fork_does_not_share_pins(arena: Arena) -> None:
    store(arena, 1, b"abc")
    pinned = arena.get(oid(1))
    writable = arena.allocate(oid(2), 3)

    kept = []

    def body() -> object:
        nonlocal pinned, writable
        for inherited in (pinned, writable):
            with pytest.raises(BufferError):
                memoryview(inherited)
        with pytest.raises(NotMaking):
            arena.seal(oid(2))
        with pytest.raises(NotMaking):
            writable.seal()
        pinned = writable = None
        gc.collect()
        mine = arena.get(oid(1))
        kept.append(mine)
        store(arena, 3, b"child")
        assert len(arena.objects()[-1]["pins"]) <= 1
        pins = next(row["pins"] for row in arena.objects() if row["id"] == oid(1))
        arena.check()
        return pins, bytes(mine)

    result = in_child(body)
    assert isinstance(result, tuple), result
    pins, data = result
    assert data == b"abc"
    assert pins.pop(os.getpid()) == 1
    ((child, count),) = pins.items()
    assert count == 1
    assert arena.reap(child) == 1
    assert arena.reap(child) == 0
    assert [row["pins"] for row in arena.objects() if row["id"] == oid(1)] == [{os.getpid(): 1}]
    assert arena.contains(oid(3))
    writable.seal()
    assert bytes(pinned) == b"abc"


def test_reap_takes_back_half_made_and_doomed(arena: Arena) -> None:
    store(arena, 1, b"abc")

    def body() -> int:
        kept = [arena.get(oid(1)), arena.get(oid(1)), arena.allocate(oid(2), 1000)]
        arena.delete(oid(1))
        os.kill(os.getpid(), signal.SIGKILL)
        return len(kept)

    in_child(body)
    pids = [pid for row in arena.objects() for pid in row["pins"]]
    assert len(set(pids)) == 1
    assert arena.stats()["used"] > 0
    assert arena.reap(pids[0]) == 3
    assert arena.stats()["used"] == 0


def test_living_process_is_not_reaped(arena: Arena) -> None:
    store(arena, 1, b"abc")
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        pinned = arena.get(oid(1))
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0 if pinned is not None else 1)
    os.read(ready[0], 1)
    assert arena.reap(pid) == 0
    os.write(go[1], b"x")
    while True:  # a zombie has let go of its memory: it need not have been waited for
        if arena.reap(pid) == 1:
            break
    assert arena.victims(1)
    os.waitpid(pid, 0)
    for end in (*ready, *go):
        os.close(end)


def test_full_arena_sweeps_the_dead(arena: Arena) -> None:
    capacity = arena.stats()["capacity"]

    def body() -> int:
        kept = arena.allocate(oid(1), capacity)
        os.kill(os.getpid(), signal.SIGKILL)
        return len(kept)

    in_child(body)
    assert arena.stats()["free"] == 0
    store(arena, 2, bytes(capacity))


def test_threads(arena: Arena) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(300):
                n = number * 1000 + i
                data = bytes([n % 251]) * (n * 37 % 90_000)
                store(arena, n, data)
                view = memoryview(arena.get(oid(n)))
                arena.delete(oid(n))
                assert view == data
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert arena.stats()["used"] == 0
    assert arena.stats()["free_blocks"] == 1


def test_close_while_other_threads_call(fd: int) -> None:
    keeper = Arena.create(fd, MB)
    numbers = itertools.count()
    for _ in range(20):
        arena = Arena.attach(fd)

        def work(arena: Arena = arena) -> None:
            with pytest.raises(ArenaError, match="closed"):
                while True:
                    n = next(numbers)
                    store(arena, n, b"x")
                    arena.delete(oid(n))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        arena.close()
        for thread in threads:
            thread.join()
    keeper.check()
    assert keeper.stats()["pinned"] == 0


def test_warm(arena: Arena) -> None:
    assert arena.warm(2 * MB) == 2 * MB
    assert arena.stats()["high_water"] == 0
    assert arena.stats()["reserved"] >= 2 * MB
    assert arena.warm(0) == 0
    store(arena, 1, bytes(MB))
    assert arena.warm(2**60) == 7 * MB
    store(arena, 2, bytes(7 * MB))
    assert arena.warm(1) == 0


def test_signals_do_not_starve_the_reservation(fd: int) -> None:
    """A profiler's timer interrupts fallocate, which then has to begin its step anew."""
    arena = Arena.create(fd, 256 * MB)
    hits = []
    previous = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        assert arena.allocate(oid(1), 200 * MB).nbytes == 200 * MB
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert hits
    arena.check()


def test_check_notices_damage(fd: int) -> None:
    """Flip words of the tables one at a time: most of them must be missed by somebody."""
    arena = Arena.create(fd, MB)
    for n in range(6):
        store(arena, n, bytes(1000 * n))
    pins = [arena.get(oid(2)), arena.get(oid(3))]
    arena.delete(oid(1))
    arena.check()
    blocks_page = next(offset for offset in range(0, 4 << 20, 4096) if oid(4) in os.pread(fd, 4096, offset))
    noticed = 0
    for word in range(20, 20 * 7):
        where = blocks_page + 8 * word
        old = os.pread(fd, 8, where)
        os.pwrite(fd, bytes([old[0] ^ 1]) + old[1:], where)
        try:
            arena.check()
        except ArenaError:
            noticed += 1
        finally:
            os.pwrite(fd, old, where)
    arena.check()
    assert noticed > 40
    assert len(pins) == 2

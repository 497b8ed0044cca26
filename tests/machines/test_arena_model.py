"""The arena against a dictionary, driven by hypothesis; and by several processes at once."""

from __future__ import annotations

import os
import random

import pytest
from budgets import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from skate._c.arena import Arena, ArenaFull, NotMaking, ObjectExists, Pinned, Writable, copy_into

CAPACITY = 1 << 18

ids = st.integers(0, 15).map(lambda n: n.to_bytes(20, "little"))
sizes = st.one_of(
    st.integers(0, 300),
    st.integers(0, 20_000),
    st.sampled_from([64, 4096, CAPACITY // 2, CAPACITY, CAPACITY + 1]),
)


def block_bytes(size: int) -> int:
    return max(64, -(-size // 64) * 64)


class Contents(bytes):
    """What one object holds. Told apart by identity, which plain bytes do not keep when they are short."""


def contents(object_id: bytes, serial: int, size: int) -> Contents:
    return Contents(random.Random(object_id + serial.to_bytes(4, "big")).randbytes(size))


class ArenaMachine(RuleBasedStateMachine):
    """Model: what each id holds, who pins it, the order of last use. Two views play two processes."""

    @initialize()
    def start(self) -> None:
        self.fd = os.memfd_create("model")
        self.arenas = [Arena.create(self.fd, CAPACITY, max_objects=64, max_processes=4)]
        self.arenas.append(Arena.attach(self.fd))
        self.serial = 0
        self.sealed: dict[bytes, Contents] = {}
        self.copied: list[Contents] = []  # sealed, and said to have a copy elsewhere
        self.making: dict[bytes, tuple[int, Writable, Contents]] = {}
        self.lost: list[tuple[Writable, int]] = []  # deleted while being made
        self.pins: list[tuple[bytes, Pinned, Contents]] = []  # id, pin, contents
        self.order: list[bytes] = []  # sealed and unpinned, longest unused first

    def teardown(self) -> None:
        if hasattr(self, "fd"):
            self.pins.clear()
            self.making.clear()
            self.lost.clear()
            for arena in self.arenas:
                for object_id in list(self.sealed):
                    arena.delete(object_id)
            assert self.arenas[0].stats()["used"] == 0
            assert self.arenas[0].stats()["free_blocks"] <= 1
            self.arenas[0].check()
            for arena in self.arenas:
                arena.close()
            os.close(self.fd)

    def pinned_contents(self, object_id: bytes) -> bool:
        data = self.sealed.get(object_id)
        return any(i == object_id and d is data for i, _, d in self.pins)

    @rule(who=st.integers(0, 1), object_id=ids, size=sizes, owner=st.binary(max_size=24))
    def allocate(self, who: int, object_id: bytes, size: int, owner: bytes) -> None:
        free = self.arenas[who].stats()["largest_free"]
        try:
            writable = self.arenas[who].allocate(object_id, size, owner)
        except ObjectExists:
            assert object_id in self.sealed or object_id in self.making
        except ArenaFull as error:
            assert error.largest_free == free < block_bytes(size)  # noqa: PT017
        else:
            assert object_id not in self.sealed
            assert object_id not in self.making
            assert block_bytes(size) <= free
            self.serial += 1
            data = contents(object_id, self.serial, size)
            copy_into(writable, 0, data)
            self.making[object_id] = (who, writable, data)

    @precondition(lambda self: self.making)
    @rule(data=st.data(), copied=st.booleans())
    def seal(self, data: st.DataObject, copied: bool) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.making)))
        who, writable, contents_ = self.making.pop(object_id)
        if not self.lost:  # the other process may still have a deleted one of this id to seal, in vain
            with pytest.raises(NotMaking):
                self.arenas[1 - who].seal(object_id)
        writable.seal(copied=copied)
        self.sealed[object_id] = contents_
        if copied:
            self.copied.append(contents_)
        self.order.append(object_id)
        del writable

    @precondition(lambda self: self.making)
    @rule(data=st.data(), drop=st.booleans())
    def abort(self, data: st.DataObject, drop: bool) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.making)))
        who, writable, _ = self.making.pop(object_id)
        if not drop:
            self.arenas[who].abort(object_id)
        del writable

    @rule(who=st.integers(0, 1), object_id=ids)
    def get(self, who: int, object_id: bytes) -> None:
        pin = self.arenas[who].get(object_id)
        assert (pin is not None) == (object_id in self.sealed) == self.arenas[1 - who].contains(object_id)
        if pin is not None:
            self.pins.append((object_id, pin, self.sealed[object_id]))
            if object_id in self.order:
                self.order.remove(object_id)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        object_id, pin, contents_ = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        assert bytes(memoryview(pin)) == contents_
        del pin
        if self.sealed.get(object_id) is contents_ and not self.pinned_contents(object_id):
            self.order.append(object_id)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        object_id, pin, contents_ = self.pins[data.draw(st.integers(0, len(self.pins) - 1))]
        alone = sum(1 for _, _, other in self.pins if other is contents_) == 1
        there = self.sealed.get(object_id) is contents_
        assert pin.evict() == (alone if there else None)
        if alone and there:
            del self.sealed[object_id]
        elif there:
            self.copied.append(contents_)
        assert bytes(memoryview(pin)) == contents_

    @rule(who=st.integers(0, 1), object_id=ids)
    def delete(self, who: int, object_id: bytes) -> None:
        sealed = object_id in self.sealed  # what is being made may come from a copy
        copied = any(each is self.sealed.get(object_id) for each in self.copied)
        assert self.arenas[who].delete(object_id) == (sealed and not copied)
        self.sealed.pop(object_id, None)
        if object_id in self.making:
            _, writable, contents_ = self.making.pop(object_id)
            self.lost.append((writable, len(contents_)))
        if object_id in self.order:
            self.order.remove(object_id)

    @precondition(lambda self: self.lost)
    @rule(seal=st.booleans())
    def finish_lost(self, seal: bool) -> None:
        writable, _ = self.lost.pop()
        if seal:
            with pytest.raises(NotMaking):
                writable.seal()

    @rule(nbytes=st.integers(0, 2 * CAPACITY))
    def victims(self, nbytes: int) -> None:
        expected, total = [], 0
        for object_id in self.order:
            if total >= nbytes:
                break
            expected.append((object_id, len(self.sealed[object_id])))
            total += block_bytes(expected[-1][1])
        assert self.arenas[0].victims(nbytes) == expected

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "fd"):
            return
        self.arenas[0].check()
        used = {id(data): len(data) for data in self.sealed.values()}
        used |= {id(data): len(data) for _, _, data in self.making.values()}
        used |= {id(data): len(data) for _, _, data in self.pins}
        total = sum(map(block_bytes, used.values())) + sum(block_bytes(size) for _, size in self.lost)
        stats = self.arenas[1].stats()
        assert stats["used"] == total
        assert stats["objects"] == len(used) + len(self.lost)
        rows = self.arenas[1].objects()
        assert {row["id"] for row in rows if row["sealed"]} == set(self.sealed)
        assert sum(sum(row["pins"].values()) for row in rows) == len(self.pins) + len(self.making) + len(
            self.lost
        )


ArenaMachine.TestCase.settings = settings(
    max_examples=examples(150), stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestArenaModel = ArenaMachine.TestCase


def worker(fd: int, seed: int, rounds: int) -> None:
    """Random puts, gets and deletes of ids that all workers share; every object read must be whole."""
    arena = Arena.attach(fd)
    rng = random.Random(seed)
    pins: list[tuple[bytes, Pinned]] = []
    for _ in range(rounds):
        object_id = rng.randrange(40).to_bytes(20, "little")
        action = rng.random()
        if action < 0.4:
            size = rng.choice([rng.randrange(200), rng.randrange(5_000), rng.randrange(60_000)])
            try:
                writable = arena.allocate(object_id, size)
            except (ObjectExists, ArenaFull):
                continue
            copy_into(writable, 0, object_id[:1] * size)
            try:
                writable.seal()
            except NotMaking:
                pass
        elif action < 0.7:
            pin = arena.get(object_id)
            if pin is not None:
                pins.append((object_id, pin))
        elif action < 0.85:
            arena.delete(object_id)
        while len(pins) > 8 or (pins and action > 0.95):
            expected, pin = pins.pop(rng.randrange(len(pins)))
            data = bytes(memoryview(pin))
            if data != expected[:1] * len(data):
                raise AssertionError("an object that was pinned has changed")
        if rng.random() < 0.005:
            arena.check()
    pins.clear()
    arena.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_several_processes(seed: int) -> None:
    fd = os.memfd_create("shared")
    arena = Arena.create(fd, CAPACITY, max_objects=64)
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                worker(fd, seed * 100 + number, 30_000)
                code = 0
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    arena.check()
    assert arena.stats()["pinned"] == 0
    for row in arena.objects():
        assert row["sealed"]
        assert row["pins"] == {}
        arena.delete(row["id"])
    assert arena.stats()["used"] == 0
    assert arena.stats()["free_blocks"] == 1
    assert arena.stats()["recoveries"] == 0
    arena.check()
    os.close(fd)

"""Lanes: what is written is read, whole and in order; who sleeps is woken; nothing reaches the wrong process."""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skate._c import lanes
from skate._c.clock import monotonic
from skate._c.frames import FrameError
from skate._c.lanes import LONGEST_RECORD, MOST_INBOXES, MOST_WRITERS, STALLED, STARVED, Exchange, Inbox, Lane
from skate.ids import NodeId, ProcessId, process_id
from skate.net import exchange
from skate.net.mailbox import HOLD_SECONDS, Link, Mailbox
from skate.wire import messages as m
from skate.wire.messages import SCHEMAS, encode

NODE = NodeId(b"node")
ME, PEER, OTHER = (process_id(NODE, number) for number in (1, 2, 3))
CODE = m.StoreReply.code  # type: ignore[attr-defined]
#: where the first slot is in the exchange, and the first ring in that; and words of both
DIRECTORY_BYTES = 1 << 18
HEAD_BYTES = 1 << 18
READY, TAIL, LISTED = 64, 64, 80
FIRST_ENTRY, PAGE_BYTES, RING_BYTES = 128, 4096, 1 << 18


def record(number: int, size: int = 0) -> bytes:
    return encode(m.StoreReply(number, b"x" * size))


def take(inbox: Inbox, limit: int) -> list[Any]:
    """A turn of each ring, until one had a second."""
    batches: list[Any] = []
    while (batch := inbox.take(limit)) is not None:
        batches.append(batch)
        if limit and len(batch[1]) == limit:
            break
    return batches


def numbers(batches: Any) -> list[int]:
    return [fields[0] for _, records, _, _ in batches for _, fields in records]


def slot_of(fd: int) -> mmap.mmap:
    """The first slot, without its rings."""
    return mmap.mmap(fd, HEAD_BYTES, offset=DIRECTORY_BYTES)


def ring_of(fd: int, number: int = 0) -> mmap.mmap:
    """A ring of the first slot."""
    return mmap.mmap(fd, RING_BYTES, offset=DIRECTORY_BYTES + HEAD_BYTES + number * RING_BYTES)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("lanes")
    os.ftruncate(fd, lanes.EXCHANGE_BYTES)
    yield fd
    os.close(fd)


@pytest.fixture
def shared(memory: int) -> Exchange:
    return Exchange(memory)


@pytest.fixture
def bell(tmp_path: Path) -> str:
    path = str(tmp_path / "bell")
    os.mkfifo(path)
    return path


def ends(shared: Exchange, bell: str = "/nowhere") -> tuple[Lane, Inbox]:
    inbox = shared.inbox(PEER, SCHEMAS, 2)
    lane = shared.lane(ME, PEER, bell)
    assert inbox is not None
    assert lane is not None
    return lane, inbox


class TestRing:
    def test_what_is_written_is_read(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert take(inbox, 10) == []
        assert lane.write(record(7, 3))
        assert take(inbox, 10) == [(ME, [(CODE, (7, b"xxx"))], 0, None)]
        assert take(inbox, 10) == []

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_as_a_queue(self, data: st.DataObject) -> None:
        """Against a deque: any sizes, any turns, past the ring's end many times."""
        fd = os.memfd_create("lanes")
        os.ftruncate(fd, lanes.EXCHANGE_BYTES)
        lane, inbox = ends(Exchange(fd))
        os.close(fd)
        sizes = st.one_of(st.integers(0, 200), st.integers(0, LONGEST_RECORD))
        model: deque[int] = deque()
        number = 0
        refused = False
        for write, amount in data.draw(st.lists(st.tuples(st.booleans(), sizes), max_size=80)):
            if write:
                text = record(number, amount)
                if lane.write(text):
                    model.append(number)
                    number += 1
                else:
                    assert len(text) > LONGEST_RECORD or model, "an empty ring has room for the longest"
                    refused |= len(text) <= LONGEST_RECORD
            else:
                batches = take(inbox, amount % 7 + 1)
                expected = [model.popleft() for _ in range(min(len(model), amount % 7 + 1))]
                assert numbers(batches) == expected
                if batches and refused:
                    assert batches[0][2] & STARVED
                    refused = False
        rest: list[int] = []
        while batches := take(inbox, 1000):
            rest += numbers(batches)
        assert rest == list(model)

    def test_what_says_where_the_next_one_is_is_read_with_the_last(self, shared: Exchange) -> None:
        """Also where the reader took no more than the last record: what says where the next one is was read with it."""
        lane, inbox = ends(shared)
        for number, (size, taken) in enumerate([(65375, 1), (0, 0), (106335, 2)]):
            assert lane.write(record(number, size))
            if taken:
                assert len(numbers(take(inbox, taken))) == taken
        assert lane.write(record(3, 73567))

    def test_a_full_one_refuses_and_the_reader_knows(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        written = 0
        while lane.write(record(written, 1000)):
            written += 1
        assert written > RING_BYTES // 1400
        ((_, records, flags, _),) = take(inbox, 5)
        assert (len(records), flags) == (5, STARVED)
        assert lane.write(record(written))
        assert numbers(take(inbox, 1000)) == list(range(5, written + 1))

    def test_a_mark_stalls_until_the_message_has_come(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert lane.write(record(1))
        assert lane.mark()
        assert lane.write(record(2))
        assert lane.mark()
        assert lane.write(record(3))
        ((_, records, flags, _),) = take(inbox, 10)
        assert ([fields[0] for _, fields in records], flags) == ([1], STALLED)
        assert inbox.is_stalled(ME)
        assert not take(inbox, 10)
        inbox.resume(ME)
        ((_, records, flags, _),) = take(inbox, 10)
        assert ([fields[0] for _, fields in records], flags) == ([2], STALLED)
        inbox.resume(ME)
        assert numbers(take(inbox, 10)) == [3]

    def test_a_record_that_does_not_decode_is_skipped(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert lane.write(record(1))
        assert lane.write(b"\xff" + record(2)[1:])
        assert lane.write(record(3))
        _, records, _, error = inbox.take(10)
        assert [fields[0] for _, fields in records] == [1]
        assert isinstance(error, FrameError)
        assert numbers(take(inbox, 10)) == [3]

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=64), st.integers(0, 512))
    def test_nonsense_in_the_ring_is_refused(self, noise: bytes, words: int) -> None:
        fd = os.memfd_create("lanes")
        os.ftruncate(fd, lanes.EXCHANGE_BYTES)
        _lane, inbox = ends(Exchange(fd))
        with ring_of(fd) as ring, slot_of(fd) as slot:
            ring[FIRST_ENTRY : FIRST_ENTRY + len(noise)] = noise
            ring[TAIL : TAIL + 8] = (words << 18 | 1024).to_bytes(8, "little")
            slot[READY : READY + 8] = (1).to_bytes(8, "little")
        os.close(fd)
        for _ in range(513):
            if not take(inbox, 100):
                break

    def test_nonsense_in_the_list_of_rings_is_refused(self, memory: int) -> None:
        """A number that no ring has, a list that goes in circles."""
        lane, inbox = ends(Exchange(memory))
        for ready, following in ((1 << 40, 0), (1, 1), (1, 1 << 20)):
            with ring_of(memory) as ring, slot_of(memory) as slot:
                slot[READY : READY + 8] = ready.to_bytes(8, "little")
                ring[LISTED + 8 : LISTED + 16] = following.to_bytes(8, "little")
            assert take(inbox, 10) == []
        assert lane.write(record(1))
        assert numbers(take(inbox, 10)) == [1]

    def test_a_broken_one_goes_on_behind_what_is_lost(self, memory: int) -> None:
        lane, inbox = ends(Exchange(memory))
        assert lane.write(record(1))
        with ring_of(memory) as ring:
            ring[FIRST_ENTRY + 4 : FIRST_ENTRY + 8] = (77).to_bytes(4, "little")
        assert lane.write(record(2))
        ((_, records, _, error),) = take(inbox, 10)
        assert records == []
        assert isinstance(error, FrameError)
        for number in range(3, 5000):  # the pages of what was lost are used again, too
            assert lane.write(record(number, 100))
            assert numbers(take(inbox, 10)) == [number]

    def test_memory_is_touched_as_it_is_needed(self, shared: Exchange) -> None:
        """Whatever has gone through it: one message under way keeps to two pages, and many to what they need."""
        lane, inbox = ends(shared)
        empty = shared.bytes_used()
        for number in range(20_000):
            assert lane.write(record(number, number % 300))
            assert numbers(take(inbox, 10)) == [number]
        assert shared.bytes_used() - empty <= 2 * PAGE_BYTES
        for number in range(100):
            assert lane.write(record(number, 200))
        assert numbers(take(inbox, 200)) == list(range(100))
        assert shared.bytes_used() - empty <= 10 * PAGE_BYTES

    def test_an_empty_one_has_room_for_the_longest(self, shared: Exchange) -> None:
        """Wherever the page lies that is in use."""
        lane, inbox = ends(shared)
        chance = random.Random(1)
        longest = LONGEST_RECORD - len(record(0))
        for number in range(500):
            for _ in range(chance.randint(0, 70)):
                lane.write(record(0, chance.choice((10, 3000, 5000, 50_000))))
            inbox_has = 1
            while inbox_has:
                inbox_has = len(take(inbox, chance.randint(1, 50)))
            assert lane.write(record(number, longest - longest % 8))
            assert numbers(take(inbox, 10)) == [number]


class TestSlots:
    def test_as_many_writers_as_rings(self, shared: Exchange) -> None:
        inbox = shared.inbox(PEER, SCHEMAS, 2)
        found = [shared.lane(process_id(NODE, 10 + number), PEER, "") for number in range(MOST_WRITERS + 1)]
        assert [lane is None for lane in found] == [False] * MOST_WRITERS + [True]
        for number, lane in enumerate(found[:-1]):
            assert lane.write(record(number))
        assert [inbox.take(1)[1][0][1][0] for _ in range(MOST_WRITERS)] == list(range(MOST_WRITERS)), (
            "in turns"
        )

    def test_as_many_inboxes_as_slots(self, shared: Exchange) -> None:
        found = [shared.inbox(process_id(NODE, 1 + number), SCHEMAS, 2) for number in range(MOST_INBOXES + 1)]
        assert [inbox is None for inbox in found] == [False] * MOST_INBOXES + [True]

    def test_of_a_process_that_has_none(self, shared: Exchange) -> None:
        assert shared.lane(ME, PEER, "") is None
        shared.nudge(PEER, "")  # nobody is there: nothing happens

    def test_a_slot_goes_to_another_only_when_nobody_writes_there(self, shared: Exchange) -> None:
        lane, _ = ends(shared)
        assert lane.write(record(1))
        shared.bury(PEER, [ME, OTHER])
        assert shared.inboxes() == [(PEER, True)]
        assert shared.lane(OTHER, PEER, "") is None, "the dead get no letters"
        assert lane.write(record(2)), "who has not heard of the death yet may write on"
        lane.give_up()
        shared.bury(OTHER, [ME])
        assert shared.inboxes() == []
        again = shared.inbox(OTHER, SCHEMAS, 2)
        assert take(again, 10) == []

    def test_writers_that_are_dead_do_not_count(self, shared: Exchange) -> None:
        ends(shared)
        shared.bury(PEER, [OTHER])
        assert shared.inboxes() == []

    def test_a_ring_of_a_dead_writer_is_used_again(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert lane.write(record(1))
        assert [fields[0] for _, fields in inbox.take_from(ME, 10)[1]] == [1]
        inbox.release(ME)
        assert not inbox.has_lane(ME)
        other = shared.lane(OTHER, PEER, "")
        assert other.write(record(2))
        assert take(inbox, 10) == [(OTHER, [(CODE, (2, b""))], 0, None)]

    def test_the_ring_of_a_dead_writer_that_nobody_has_looked_at(self, shared: Exchange) -> None:
        """It is given away while it is in the list of what was written to, before others and behind them."""
        inbox = shared.inbox(PEER, SCHEMAS, 2)
        writers = [process_id(NODE, 10 + number) for number in range(5)]
        opened = [shared.lane(writer, PEER, "") for writer in writers]
        for number, lane in enumerate(opened):
            assert lane.write(record(number))
        for dead in (0, 2, 4):
            inbox.release(writers[dead])
        others = [shared.lane(process_id(NODE, 20 + number), PEER, "") for number in range(3)]
        for number, lane in enumerate(others):
            assert lane.write(record(20 + number))
        assert opened[1].write(record(11))
        assert sorted(numbers(take(inbox, 10))) == [1, 3, 11, 20, 21, 22]
        for number, lane in enumerate([opened[1], opened[3], *others]):
            assert lane.write(record(number))
        assert numbers(take(inbox, 10)) == list(range(5))

    def test_a_writer_that_was_killed_before_its_ring_was_listed(self, memory: int) -> None:
        """It has marked the ring as listed, and no more: what it had written is heard when its death is known."""
        shared = Exchange(memory)
        lane, inbox = ends(shared)
        assert lane.write(record(1))
        with slot_of(memory) as slot:
            slot[READY : READY + 8] = bytes(8)
        assert take(inbox, 10) == []
        assert [fields[0] for _, fields in inbox.take_from(ME, 10)[1]] == [1]
        inbox.release(ME)
        other = shared.lane(OTHER, PEER, "")
        assert other.write(record(2))
        assert numbers(take(inbox, 10)) == [2]

    def test_the_memory_of_the_dead_is_given_back(self, shared: Exchange) -> None:
        inbox = shared.inbox(PEER, SCHEMAS, 2)
        used = []
        for turn in range(5):
            writers = [process_id(NODE, 100 * (turn + 1) + number) for number in range(20)]
            for writer in writers:
                lane = shared.lane(writer, PEER, "")
                while lane.write(record(0, 1000)):
                    pass
            for writer in writers:
                while inbox.take_from(writer, 1000) is not None:
                    pass
                inbox.release(writer)
            take(inbox, 1)
            used.append(shared.bytes_used())
        assert used == used[:1] * 5
        shared.bury(PEER, [])
        assert shared.bytes_used() < DIRECTORY_BYTES

    def test_last_words_go_past_marks(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert lane.write(record(1))
        assert lane.mark()
        assert lane.write(record(2))
        heard = []
        while (batch := inbox.take_from(ME, 10)) is not None:
            heard += [fields[0] for _, fields in batch[1]]
        assert heard == [1, 2]

    def test_ids_are_looked_at(self, shared: Exchange) -> None:
        with pytest.raises(ValueError, match="8 bytes"):
            shared.inbox(b"short", SCHEMAS, 2)
        with pytest.raises(ValueError, match="zeros"):
            shared.inbox(bytes(8), SCHEMAS, 2)


class TestSleep:
    def test_a_bell_for_whoever_sleeps(self, shared: Exchange, bell: str) -> None:
        lane, inbox = ends(shared, bell)
        fd = os.open(bell, os.O_RDWR | os.O_NONBLOCK)
        try:
            assert lane.write(record(1))
            assert not select.select([fd], [], [], 0)[0], "it is awake"
            assert not inbox.fall_asleep(True), "something has come"
            inbox.wake_up()
            take(inbox, 10)
            assert inbox.fall_asleep(True)
            assert lane.write(record(2))
            assert lane.wanted
            lane.ring()
            lane.ring()
            assert os.read(fd, 10) == b"!", "one bell is enough"
            inbox.wake_up()
        finally:
            os.close(fd)

    def test_a_nudge(self, shared: Exchange, bell: str) -> None:
        _, inbox = ends(shared)
        shared.nudge(PEER, bell)
        assert take(inbox, 1) == []
        assert not inbox.fall_asleep(True), "once"
        inbox.wake_up()
        assert inbox.fall_asleep(True)
        fd = os.open(bell, os.O_RDWR | os.O_NONBLOCK)
        shared.nudge(PEER, bell)
        assert os.read(fd, 10) == b"!"
        os.close(fd)

    def test_who_is_awake(self, shared: Exchange) -> None:
        inbox = shared.inbox(PEER, SCHEMAS, 2)
        assert shared.awake() == 1
        assert inbox.fall_asleep(False)
        assert shared.awake() == 1, "another thread of it may run"
        inbox.wake_up()
        assert inbox.fall_asleep(True)
        assert shared.awake() == 0
        inbox.wake_up()
        assert shared.awake() == 1
        shared.bury(PEER, [])
        assert shared.awake() == 0

    def test_who_is_woken_counts_as_awake_at_once(self, shared: Exchange, bell: str) -> None:
        """Before it runs: so whoever spins on its core makes room for it."""
        lane, inbox = ends(shared, bell)
        assert inbox.fall_asleep(True)
        assert shared.awake() == 0
        assert lane.write(record(1))
        lane.ring()
        assert shared.awake() == 1
        inbox.wake_up()
        take(inbox, 1)
        assert inbox.fall_asleep(True)
        assert shared.awake() == 0

    def test_spinning_is_learned(self, shared: Exchange) -> None:
        lane, inbox = ends(shared)
        assert not inbox.spin(), "nothing is known yet"
        for _ in range(20):  # short waits
            inbox.spin()
            inbox.fall_asleep(True)
            inbox.wake_up()
        assert inbox.usual_wait < 3e-4
        assert lane.write(record(1))
        assert inbox.spin()
        take(inbox, 1)
        for _ in range(3):  # what is spun for does not come
            assert not inbox.spin()
            inbox.fall_asleep(True)
            signal.sigtimedwait([], 0.005)
            inbox.wake_up()
        assert inbox.usual_wait > 3e-4
        assert not inbox.spin()

    def test_nobody_spins_where_more_are_awake_than_cores(self, shared: Exchange) -> None:
        _, inbox = ends(shared)
        inbox.fall_asleep(True)
        inbox.wake_up()
        others = [shared.inbox(process_id(NODE, 10 + number), SCHEMAS, 2) for number in range(2)]
        started = perf_counter()
        for _ in range(1000):
            assert not inbox.spin()
        assert perf_counter() - started < 0.1, "it would have spun for 0.2 s"
        assert shared.awake() == 3
        assert len(others) == 2


def _killed_while_it_writes(memory: int, rounds: int) -> None:
    shared = Exchange(memory)
    inbox = shared.inbox(PEER, SCHEMAS, 2)
    for turn in range(rounds):
        writer = process_id(NODE, 100 + turn)
        child = os.fork()
        if child == 0:
            lane = Exchange(memory).lane(writer, PEER, "/nowhere")
            number = 0
            while True:
                if lane.write(record(number, number * 37 % 3000)):
                    number += 1
        got: list[int] = []
        target = random.Random(turn).randint(1, 3000)
        while len(got) < target:
            got += numbers(take(inbox, 50))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while (batch := inbox.take_from(writer, 50)) is not None:
            assert batch[3] is None
            got += [fields[0] for _, fields in batch[1]]
        assert got == list(range(len(got)))
        inbox.release(writer)


def test_writers_that_are_killed_take_nothing_of_others_along(memory: int) -> None:
    """At any instruction of a write: the list of rings that were written to stays whole, and rings are used again."""
    shared = Exchange(memory)
    inbox = shared.inbox(PEER, SCHEMAS, 2)
    chance = random.Random(3)
    living: dict[bytes, int] = {}
    heard: dict[bytes, list[int]] = {}
    started = 0
    try:
        for _ in range(40):
            while len(living) < 3:
                started += 1
                writer = process_id(NODE, 100 + started)
                child = os.fork()
                if child == 0:
                    lane, number = Exchange(memory).lane(writer, PEER, "/nowhere"), 0
                    while True:
                        number += lane.write(record(number, number * 37 % 3000))
                living[writer], heard[writer] = child, []
            silent = dict.fromkeys(living, chance.randint(1, 300))
            while any(more > 0 for more in silent.values()):
                if (batch := inbox.take(50)) is not None:
                    sender, records, _, error = batch
                    assert error is None
                    heard[sender] += [fields[0] for _, fields in records]
                    silent[sender] -= len(records)
            writer = chance.choice(list(living))
            os.kill(living[writer], signal.SIGKILL)
            os.waitpid(living.pop(writer), 0)
            while (batch := inbox.take_from(writer, 50)) is not None:
                heard[writer] += [fields[0] for _, fields in batch[1]]
            inbox.release(writer)
            assert heard[writer] == list(range(len(heard[writer])))
    finally:
        for child in living.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_writer_that_is_killed_leaves_whole_records(memory: int) -> None:
    _killed_while_it_writes(memory, 10)


class Socket:
    """Stands where a link has its socket: notes what is sent."""

    def __init__(self, number: int, sent: list[int]) -> None:
        self._number, self._sent = number, sent

    def send(self, frame: bytes, flags: int) -> None:
        self._sent.append(self._number)

    def close(self) -> None: ...


class TestMailboxes:
    """Two mailboxes in one process, one after the other."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> Iterator[tuple[Mailbox, Mailbox, list[int]]]:
        fd, place = exchange.create(2)
        heard: list[int] = []
        ours = Mailbox(ME, str(tmp_path), lambda *_: None, place)
        theirs = Mailbox(
            PEER, str(tmp_path), lambda _, records: heard.extend(f[0] for _, f in records), place
        )
        yield ours, theirs, heard
        ours.close()
        theirs.close()
        os.close(fd)

    def test_order_with_long_messages_between(self, pair: tuple[Mailbox, Mailbox, list[int]]) -> None:
        ours, theirs, heard = pair
        chance = random.Random(5)
        sent = 0
        while len(heard) < 3000:
            for _ in range(chance.randint(1, 40)):
                ours.post(PEER, record(sent, chance.choice((0, 10, 500, 20_000, 50_000, 200_000))))
                sent += 1
            ours.flush()
            if chance.random() < 0.5:
                theirs.read(0)
        while len(heard) < sent:
            ours.flush()
            theirs.read(1)
        assert heard == list(range(sent))

    def test_what_is_due_leaves_with_what_is_nearly_due(
        self, pair: tuple[Mailbox, Mailbox, list[int]]
    ) -> None:
        """So a look at all that waits, however many peers it is for, comes with a share of them, and never early."""
        ours, _, _ = pair
        began, pause = float(int(perf_counter())), 1000.0  # so that sums are exact
        sent: list[int] = []
        for number in range(100):
            peer = process_id(NODE, 100 + number)
            link = ours._links[peer] = Link(peer, None)
            link.socket = Socket(number, sent)
            link.flushed_at = began + number * pause / 100
            ours.post(peer, record(number))
        assert ours.flush_due(began + 0.9 * pause, pause)
        assert sent == [], "none is due"
        assert ours.flush_due(began + pause, pause)
        assert sent == list(range(26)), "the first is due, a quarter nearly"
        assert ours.flush_due(began + 1.2 * pause, pause)
        assert len(sent) == 26
        assert ours.flush_due(began + 1.5 * pause, pause)
        assert not ours.flush_due(began + 3 * pause, pause)
        assert sent == list(range(100))

    def test_nobody_is_woken_while_all_cores_are_busy(self, pair: tuple[Mailbox, Mailbox, list[int]]) -> None:
        """He would wait for a core; but not for long, and not where whoever has written goes to sleep."""
        ours, theirs, _ = pair
        exchange_of_all = ours._exchange
        assert exchange_of_all is not None
        others = [exchange_of_all.inbox(process_id(NODE, 10 + number), SCHEMAS, 2) for number in range(2)]
        theirs.serve()
        assert theirs.fall_asleep(True)
        assert exchange_of_all.awake() == 3
        for flush in (lambda: ours.flush_due(monotonic() + HOLD_SECONDS, 0), lambda: ours.flush()):
            assert ours.post(PEER, record(1))
            assert ours.flush_due(monotonic(), 0), "it waits"
            assert not select.select([theirs.fileno()], [], [], 0)[0]
            flush()
            assert not ours.waits
            assert select.select([theirs.fileno()], [], [], 0)[0]
            theirs.wake_up()
            theirs.serve()
            assert theirs.fall_asleep(True)
        others[0].fall_asleep(True)  # type: ignore[union-attr]
        assert ours.post(PEER, record(2))
        assert not ours.flush_due(monotonic(), 0)
        assert select.select([theirs.fileno()], [], [], 0)[0]

    def test_a_slow_reader_blocks_nobody(self, pair: tuple[Mailbox, Mailbox, list[int]]) -> None:
        ours, theirs, heard = pair
        for number in range(5000):
            ours.post(PEER, record(number, 100))
        ours.flush()
        while len(heard) < 5000:
            theirs.read(0)
            ours.flush()
        assert heard == list(range(5000))

    def test_what_was_sent_before_a_death_is_heard(self, pair: tuple[Mailbox, Mailbox, list[int]]) -> None:
        ours, theirs, _heard = pair
        for number in range(100):
            assert ours.post(PEER, record(number))
        ours.close()
        assert [fields[0] for _, fields in theirs.last_words(ME)] == list(range(100))
        theirs.forget(ME)
        assert theirs.last_words(ME) == []
        assert not theirs.read(0)


def test_no_wake_up_is_lost(memory: int, tmp_path: Path) -> None:
    """Two processes play ping-pong and sleep whenever they can, at odd moments: a lost wake-up would hang."""
    rounds = 20_000
    paths = {}
    for process in (ME, PEER):
        paths[process] = str(tmp_path / process.hex())
        os.mkfifo(paths[process])

    def play(me: ProcessId, peer: ProcessId, serves: bool) -> None:
        shared = Exchange(memory)
        inbox = shared.inbox(me, SCHEMAS, 2)
        bell = os.open(paths[me], os.O_RDWR | os.O_NONBLOCK)
        poll = select.epoll()
        poll.register(bell, select.EPOLLIN)
        chance = random.Random(serves)
        lane = None
        while lane is None:
            lane = shared.lane(me, peer, paths[peer])
        if serves:
            lane.write(record(0))
            lane.ring()
        heard = -1
        while True:
            for number in numbers(take(inbox, 5)):
                assert number == (heard + 2 if heard >= 0 else number)
                heard = number
                lane.write(record(number + 1))
                if lane.wanted:
                    lane.ring()
            if heard >= rounds - 2:
                break
            if chance.random() < 0.3:
                inbox.spin()
            for _ in range(chance.randint(0, 30)):
                pass
            if inbox.fall_asleep(True):
                if poll.poll(20):
                    os.read(bell, 100)
                elif not take(inbox, 0):
                    raise AssertionError(f"nobody woke it; it has heard {heard}")
            inbox.wake_up()

    child = os.fork()
    if child == 0:
        try:
            play(PEER, ME, False)
            os._exit(0)
        finally:
            os._exit(1)
    play(ME, PEER, True)
    assert os.waitpid(child, 0)[1] == 0


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKATE_LANES", "0")
    assert exchange.create(2) is None


def test_a_death_is_heard_of_after_what_the_dead_had_said(memory: int, tmp_path: Path) -> None:
    """The news of it comes by another ring: the dead one's is read first, if its reader asks (`last_words`)."""
    place = exchange.Place(f"/proc/self/fd/{memory}", 2)
    heard: list[int] = []

    def deliver(sender: ProcessId, records: Any) -> None:
        if sender == ME:  # it brings the news
            heard.extend(fields[0] for _, fields in theirs.last_words(OTHER))
        heard.extend(fields[0] for _, fields in records)

    bearer = Mailbox(ME, str(tmp_path), lambda *_: None, place)
    theirs = Mailbox(PEER, str(tmp_path), deliver, place)
    dead = Mailbox(OTHER, str(tmp_path), lambda *_: None, place)
    try:
        bearer.post(PEER, record(0))
        theirs.read(0)
        for number in (1, 2, 3):
            dead.post(PEER, record(number))
        bearer.post(PEER, record(4))
        theirs.read(0)
        assert heard == [0, 1, 2, 3, 4]
    finally:
        for mailbox in (bearer, theirs, dead):
            mailbox.close()

"""In which order an actor runs what it is asked, and what runs beside it."""

import copy
import threading
import time

import pytest
import skate

from .rendezvous import Gate, eventually, most_at_once

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
class Log:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.entries: list = []

    def add(self, entry: object) -> int:
        self.entries.append(entry)
        return len(self.entries)

    def fail(self, entry: object) -> None:
        self.entries.append(entry)
        raise LookupError(entry)

    def read(self) -> list:
        return list(self.entries)


class Plain:
    """For actors of other kinds."""

    def __init__(self) -> None:
        self.entries: list = []

    def add(self, entry: object) -> object:
        self.entries.append(entry)
        return entry

    def span(self, entry: object = None) -> tuple[float, float]:
        start = time.monotonic()
        time.sleep(0.01)
        return start, time.monotonic()

    def read(self) -> list:
        return list(self.entries)


class Coroutines:
    def __init__(self) -> None:
        self.entries: list = []

    async def add(self, entry: object) -> object:
        self.entries.append(entry)
        return entry

    async def read(self) -> list:
        return list(self.entries)


@skate.remote(num_cpus=0)
def late(gate: Gate, value: object) -> object:
    gate.wait()
    return value


@skate.remote
def add_from_elsewhere(log: object, *entries: object) -> list[int]:
    return skate.get([log.add.remote(entry) for entry in entries])


class TestOneCaller:
    def test_in_the_order_of_the_calls(self) -> None:
        log = Log.remote()
        refs = [log.add.remote(i) for i in range(1_000)]
        assert skate.get(log.read.remote()) == list(range(1_000))
        assert skate.get(refs) == list(range(1, 1_001))

    def test_also_of_those_made_before_it_was_there(self, gate: Gate) -> None:
        @skate.remote
        class Slow(Plain):
            def __init__(self) -> None:
                gate.wait()
                super().__init__()

        slow = Slow.remote()
        for i in range(10):
            slow.add.remote(i)
        gate.open()
        slow.add.remote(10)
        assert skate.get(slow.read.remote()) == list(range(11))

    def test_also_when_an_argument_is_late(self, gate: Gate) -> None:
        log = Log.remote()
        skate.get(log.add.remote("first"))
        blocked = log.add.remote(late.remote(gate, "second"))
        after = [
            log.add.remote("third"),
            log.add.remote(late.remote(gate, "fourth")),
            log.add.remote("fifth"),
        ]
        assert skate.get(add_from_elsewhere.remote(log, "another's")) == [2]
        assert skate.wait([blocked, *after], timeout=0)[0] == []
        gate.open()
        assert skate.get(after) == [4, 5, 6]
        assert skate.get(log.read.remote()) == ["first", "another's", "second", "third", "fourth", "fifth"]

    def test_also_when_arguments_are_ready_the_other_way_round(self, gate: Gate, tmp_path) -> None:
        other_gate = Gate(tmp_path / "other")
        log = Log.remote()
        first = log.add.remote(late.remote(gate, "first"))
        value = late.remote(other_gate, "second")
        second = log.add.remote(value)
        other_gate.open()
        assert skate.get(value) == "second"
        gate.open()
        assert skate.get([first, second]) == [1, 2]
        assert skate.get(log.read.remote()) == ["first", "second"]

    def test_also_of_small_and_large_arguments(self) -> None:
        log = Log.remote()
        refs = [log.add.remote(bytes(300_000) if i % 3 == 0 else i) for i in range(60)]
        assert skate.get(refs) == list(range(1, 61))
        entries = skate.get(log.read.remote())
        assert [len(entry) if isinstance(entry, bytes) else entry for entry in entries] == [
            300_000 if i % 3 == 0 else i for i in range(60)
        ]

    def test_also_by_several_handles_of_one_process(self) -> None:
        log = Log.remote()
        handles = [log, copy.copy(log), skate.get(skate.put([log]))[0]]
        for i in range(30):
            handles[i % 3].add.remote(i)
        assert skate.get(log.read.remote()) == list(range(30))

    def test_also_past_failures(self, gate: Gate) -> None:
        log = Log.remote()
        failed = log.fail.remote("first")
        never = log.add.remote(log.fail.remote("second"))
        last = log.add.remote("third")
        assert skate.get(last) == 3
        for ref in (failed, never):
            with pytest.raises(LookupError):
                skate.get(ref)
        assert skate.get(log.read.remote()) == ["first", "second", "third"]

    def test_each_thread_of_a_program_sees_its_own_order(self) -> None:
        log = Log.remote()

        def call(name: str) -> None:
            for i in range(100):
                log.add.remote((name, i))

        threads = [threading.Thread(target=call, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entries = skate.get(log.read.remote())
        for name in "abc":
            assert [i for who, i in entries if who == name] == list(range(100))

    def test_in_a_task_and_in_an_actor_too(self) -> None:
        @skate.remote
        class Caller:
            def call(self, log: object) -> list[int]:
                return skate.get([log.add.remote(i) for i in range(100)])

        caller = Caller.remote()
        for submit in (
            lambda log: caller.call.remote(log),
            lambda log: add_from_elsewhere.remote(log, *range(100)),
        ):
            log = Log.remote()
            assert skate.get(submit(log)) == list(range(1, 101))
            assert skate.get(log.read.remote()) == list(range(100))


class TestSeveralCallers:
    def test_nobody_waits_for_anothers_argument(self, gate: Gate) -> None:
        log = Log.remote()
        blocked = log.add.remote(late.remote(gate, "mine"))
        assert skate.get(add_from_elsewhere.remote(log, "yours", "yours too")) == [1, 2]
        gate.open()
        assert skate.get(blocked) == 3

    def test_each_sees_its_own_order(self) -> None:
        log = Log.remote()
        calls = [add_from_elsewhere.remote(log, *((name, i) for i in range(50))) for name in "abc"]
        for i in range(50):
            log.add.remote(("me", i))
        skate.get(calls)
        entries = skate.get(log.read.remote())
        assert len(entries) == 200
        for name in ("a", "b", "c", "me"):
            assert [i for who, i in entries if who == name] == list(range(50))

    def test_one_call_at_a_time(self) -> None:
        @skate.remote
        def call(actor: object) -> list[tuple[float, float]]:
            return skate.get([actor.span.remote() for _ in range(5)])

        actor = skate.remote(Plain).remote()
        calls = [call.remote(actor) for _ in range(3)]
        spans = skate.get([actor.span.remote() for _ in range(5)])
        spans += [span for group in skate.get(calls) for span in group]
        assert len(spans) == 20
        assert most_at_once(spans) == 1

    def test_a_busy_actor_holds_up_no_other(self, gate: Gate) -> None:
        @skate.remote
        class Busy:
            def work(self) -> str:
                gate.wait()
                return "done"

        busy, log = Busy.remote(), Log.remote()
        ref = busy.work.remote()
        assert skate.get([log.add.remote(i) for i in range(10)]) == list(range(1, 11))
        gate.open()
        assert skate.get(ref) == "done"


class TestOutOfOrder:
    """What never promised an order lets calls overtake one that waits for its argument."""

    @pytest.mark.parametrize(
        ("cls", "options"),
        [(Coroutines, {}), (Plain, {"max_concurrency": 2}), (Plain, {"allow_out_of_order_execution": True})],
        ids=["async", "threaded", "asked for"],
    )
    def test_overtakes(self, cls: type, options: dict, gate: Gate) -> None:
        actor = skate.remote(cls).options(**options).remote()
        blocked = actor.add.remote(late.remote(gate, "first"))
        assert skate.get(actor.add.remote("second")) == "second"
        assert skate.get(actor.read.remote()) == ["second"]
        gate.open()
        assert skate.get(blocked) == "first"
        assert skate.get(actor.read.remote()) == ["second", "first"]

    def test_asked_for_it_still_is_one_at_a_time(self) -> None:
        actor = skate.remote(Plain).options(allow_out_of_order_execution=True).remote()
        assert most_at_once(skate.get([actor.span.remote(i) for i in range(10)])) == 1

    @pytest.mark.parametrize(
        ("cls", "options"), [(Coroutines, {}), (Plain, {"max_concurrency": 2})], ids=["async", "threaded"]
    )
    def test_no_order_can_be_promised_there(self, cls: type, options: dict) -> None:
        with pytest.raises(ValueError, match="allow_out_of_order_execution"):
            skate.remote(cls).options(allow_out_of_order_execution=False, **options).remote()

    def test_none_is_lost(self) -> None:
        for actor in (
            skate.remote(Coroutines).remote(),
            skate.remote(Plain).options(max_concurrency=4).remote(),
        ):
            refs = [actor.add.remote(i) for i in range(500)]
            assert skate.get(refs) == list(range(500))
            eventually(lambda actor=actor: sorted(skate.get(actor.read.remote())) == list(range(500)))

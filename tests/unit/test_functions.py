"""What a worker knows of functions: as long as somebody counts on it, and no longer."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

from skate._c.steps import Steps
from skate.core.exports import Exports
from skate.core.tasks import Function
from skate.ids import NodeId, ProcessId, process_id
from skate.worker.functions import Functions

HERE, THERE = NodeId(b"here"), NodeId(b"away")
A, B, C = process_id(HERE, 1), process_id(HERE, 2), process_id(THERE, 1)


def functions(*owners: ProcessId) -> Functions:
    known = Functions(Steps())
    for owner in owners:
        known.exported(owner, b"f", "f", b"pickled")
    return known


def test_it_goes_with_the_last_owner_that_counts_on_it() -> None:
    known = functions(A, B, A)
    loaded = known.by_id[b"f"]
    known.forgotten(A, [b"f", b"never heard of"])
    known.forgotten(A, [b"f"])
    assert known.by_id[b"f"] is loaded
    assert loaded.owners == [B], "its refs live by one that still keeps them"
    known.forgotten(B, [b"f"])
    assert not known.by_id


def test_those_of_the_dead_go_when_another_owner_is_served() -> None:
    known = functions(A, B)
    known.owner_died(A)
    known.serves_another()
    assert known.by_id[b"f"].owners == [B]
    known.owner_died(HERE)
    assert b"f" in known.by_id, "what was asked for may be about to begin"
    known.exported(C, b"f", "f", b"pickled")
    known.serves_another()
    assert known.by_id[b"f"].owners == [C]
    known.owner_died(THERE)
    known.serves_another()
    assert not known.by_id


def test_what_a_function_holds_is_let_go_of_once_the_lock_is_free() -> None:
    class Held:
        pass

    known = functions(A)
    known.by_id[b"f"].call = held = Held()
    watched = weakref.ref(held)
    del held
    with known._lock:
        known.forgotten(A, [b"f"])
        gc.collect()
        assert watched() is not None
    assert watched() is None


def test_large_functions_are_forgotten_sooner() -> None:
    exports = Exports(most_bytes=100)
    a, b, c, d, e = (
        Function(name, "f", bytes(n))
        for name, n in ((b"a", 60), (b"b", 20), (b"c", 30), (b"d", 200), (b"e", 1))
    )
    lease: Any = SimpleNamespace(worker=A, in_flight={b"": SimpleNamespace(function=a)})
    exports.granted(A)
    assert exports.sent(lease, a) == []
    assert exports.sent(lease, b) == []
    assert exports.sent(lease, c) == [b"b"], "a runs"
    lease.in_flight.clear()
    assert exports.sent(lease, d) == [b"a", b"c"], "no function is too large"
    assert exports.sent(lease, e) == [b"d"]
    assert list(exports.known[A]) == [b"e"]


def test_what_its_owner_has_dropped_is_forgotten_first() -> None:
    """Functions that a program makes in a loop are given back in the workers, however small; those that it has stay."""
    exports = Exports(most=100, most_dropped_bytes=50)
    lease: Any = SimpleNamespace(worker=A, in_flight={})
    exports.granted(A)
    kept = [Function(b"kept%d" % n, "f", bytes(10)) for n in range(10)]
    for function in kept:
        assert exports.sent(lease, function) == []
    forgotten = []
    for n in range(20):
        function = Function(b"dropped%d" % n, "f", bytes(10))
        forgotten += exports.sent(lease, function)
        del function
    assert forgotten == [b"dropped%d" % n for n in range(19)]
    again = Function(b"dropped19", "f", bytes(10))  # the same pickle, made once more, runs
    lease.in_flight[b""] = SimpleNamespace(function=again)
    assert exports.sent(lease, Function(b"another", "f", bytes(10))) == []
    assert len(exports.known[A]) == 12

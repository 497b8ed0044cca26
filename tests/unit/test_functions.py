"""What a worker knows of functions: as long as somebody counts on it, and no longer."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

from skate._c.steps import Steps
from skate.core.exports import Exports
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
    running = SimpleNamespace(function=SimpleNamespace(id=b"a"))
    lease: Any = SimpleNamespace(worker=A, in_flight={b"": running})
    exports.granted(A)
    assert exports.sent(lease, b"a", 60) == []
    assert exports.sent(lease, b"b", 20) == []
    assert exports.sent(lease, b"c", 30) == [b"b"], "a runs"
    lease.in_flight.clear()
    assert exports.sent(lease, b"d", 200) == [b"a", b"c"], "no function is too large"
    assert exports.sent(lease, b"e", 1) == [b"d"]
    assert list(exports.known[A]) == [b"e"]

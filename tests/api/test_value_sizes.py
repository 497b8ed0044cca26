"""Values of any size, in every way that a value travels: whole, and without a message that is too long for a lane.

The kind: a size at which a value leaves one way for another, which costs many times as much as its neighbours. Within a
node a record goes by the lane, and what is too long for that by ZeroMQ, which is a wake of other threads on both sides;
so no value may come to that. Nobody has a ZeroMQ socket to a process of its node, then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import skate
from skate.api.session import require_runtime

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.lanes]

#: on both sides of each border: of what is inline, of what is bare, of what a lane takes
SIZES = (8, 4_000, 29_000, 31_000, 33_000, 64_000, 96_000, 101_000, 125_000, 300_000, 3_000_000)


def links_by_socket() -> list[str]:
    """The peers to which this process has a ZeroMQ socket."""
    mailbox = require_runtime().mailbox
    return [link.peer.hex() for link in mailbox._links.values() if link.socket is not None]


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def of_size(size: int) -> np.ndarray:
    return np.full(size, size % 251, np.uint8)


@skate.remote(num_returns=3)
def three(size: int) -> tuple[bytes, bytes, bytes]:
    return bytes(size), bytes(size), bytes(size)


@skate.remote
def stream(size: int) -> Iterator[np.ndarray]:
    for _ in range(3):
        yield np.full(size, size % 251, np.uint8)


@skate.remote
def weigh(*values: bytes) -> int:
    return sum(map(len, values))


@skate.remote
def raising(size: int) -> None:
    raise ValueError("x" * size)


@skate.remote(num_cpus=0)
class Keeper:
    def __init__(self, value: object) -> None:
        self.value = value

    def get(self) -> object:
        return self.value

    def get_from(self, box: list[skate.ObjectRef]) -> object:
        return skate.get(box[0])

    def sockets(self) -> list[str]:
        return links_by_socket()


def wrapped(size: int) -> list[object]:
    array = np.full(size, size % 251, np.uint8)
    return [
        array,
        bytes(size),
        "é" * (size // 2),
        {"a": array, "b": [array[: size // 2]]},
        [bytes(size // 20)] * 20,
    ]


def same(left: object, right: object) -> bool:
    if isinstance(left, dict):
        return same(left["a"], right["a"]) and same(left["b"][0], right["b"][0])  # type: ignore[index]
    return bool(np.array_equal(left, right)) if isinstance(left, np.ndarray) else left == right


@pytest.mark.parametrize("size", SIZES)
def test_a_value_of_any_size_goes_by_no_slow_way(size: int) -> None:
    keeper = Keeper.remote(np.full(size, 1, np.uint8))
    assert skate.get(keeper.get.remote()).sum() == size
    for value in wrapped(size):
        for back in (
            identity.remote(value),
            identity.remote(skate.put(value)),
            skate.put(value),
            keeper.get_from.remote([skate.put(value)]),
            keeper.get_from.remote([identity.remote(value)]),
        ):
            assert same(value, skate.get(back))
    assert skate.get(of_size.remote(size)).nbytes == size
    assert [skate.get(ref).nbytes for ref in stream.remote(size)] == [size] * 3
    assert skate.get(keeper.sockets.remote()) == []
    assert links_by_socket() == []


@pytest.mark.parametrize("size", [12_000, 29_000])
def test_several_values_in_one_message(size: int) -> None:
    assert [len(value) for value in skate.get(list(three.remote(size)))] == [size] * 3
    values = [bytes(size)] * 3
    assert skate.get(weigh.remote(*values)) == 3 * size
    assert skate.get(weigh.remote(*[skate.put(value) for value in values])) == 3 * size
    with pytest.raises(ValueError, match="xxx"):
        skate.get(raising.remote(3 * size))
    assert links_by_socket() == []

"""`Queue`: a first-in, first-out queue that any task, actor or driver can put to and get from.

An actor holds the items; a `Queue` is a handle to it, and can be sent anywhere. State, here: none but that handle.

How items travel: pickled by who puts them, unpickled by who gets them. The actor keeps the bytes as they are, so it
needs neither the classes nor the time, and a batch is one call, one pickle, one entry. Three kinds of value travel as
themselves: simple ones, which pickle at once; those with refs or actor handles inside, which must be counted; and those
with large buffers, which the actor's process then shares with the store.

What always holds: each item that `put` has taken is given to one `get`, in order. So `put` returns once the actor has
the item, and `get` asks for no more than it gives. A `get` that is broken off (Ctrl-C, or a cancelled `get_async`) says
so, and an item that was under way to it by then goes back to the front. Gets of processes that are dead get nothing.
(What a process was given that dies the moment after is lost with it.)
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from skate._c.plain import register_plain_type, to_bytes, unpack
from skate._c.refs import ObjectRef
from skate.api.actors import kill
from skate.api.objects import get, wait
from skate.api.remote import remote
from skate.api.session import is_initialized, require_runtime
from skate.exceptions import SkateError
from skate.ids import owner_of
from skate.options import as_index
from skate.runtime import current
from skate.store.serialization import Serialized, serialize
from skate.util.checks import check_timeout

__all__ = ["Empty", "Full", "Queue"]

#: calls that wait in the actor at most: past these, a put could not get through to the gets that wait for it
WAITING_CALLS = 1_000_000
#: bytes from which on large buffers are worth a way of their own
LARGE_BYTES = 1_000_000
#: pickled at once, and cannot change
SIMPLE = frozenset({int, float, bool, type(None), str, bytes})


class Empty(queue.Empty):
    """Nothing to get. Also a `queue.Empty` of the standard library."""


class Full(queue.Full):
    """No room to put. Also a `queue.Full` of the standard library."""


class Queue:
    """A queue of at most `maxsize` items (0: of any number), as `queue.Queue` and `asyncio.Queue` are.

    It is made by starting an actor, which `actor_options` are for: Queue(actor_options={"name": "jobs"}). The queue
    lives as long as a `Queue` in any process does, or until `shutdown()`; then what waits, and what comes, raises
    ActorDiedError. An item that is an ObjectRef arrives as its value, as any argument does; refs inside of items, and
    in batches, stay refs. Arrays arrive read-only.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        size = as_index(maxsize)
        if size is None:
            raise TypeError(f"Queue(): maxsize must be an int, got {maxsize!r:.100}")
        if actor_options is not None and not isinstance(actor_options, dict):
            raise TypeError(
                f"Queue(): actor_options must be a dict such as {{'num_cpus': 1}}, got {actor_options!r:.100}"
            )
        self.maxsize = size
        actors = _ActorClass.options(**actor_options) if actor_options else _ActorClass
        self.actor: Any = actors.remote(size)

    def __len__(self) -> int:
        return self.size()

    def __repr__(self) -> str:
        return f"<Queue maxsize={self.maxsize} actor={self.actor!r}>"

    def size(self) -> int:
        """How many items there are. Blocks for one call, as `empty` and `full` do."""
        return int(get(self._living().qsize.remote()))

    qsize = size

    def empty(self) -> bool:
        """Whether there are none, a moment ago."""
        return self.size() == 0

    def full(self) -> bool:
        """Whether there was no room, a moment ago."""
        return 0 < self.maxsize <= self.size()

    # -------------------------------------------------------------------------------------------------------- put

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item at the end. Blocks until the queue has it, waiting for room where it is full.

        Raises Full where there is no room: at once without `block`, else after `timeout` seconds. ValueError for a
        negative timeout, SerializationError for what cannot be pickled, ActorDiedError where the queue is gone.
        """
        ref, token = self._send("put", block, timeout, _packed(item))
        if not self._answer(ref, token):
            raise Full(self._no_room(block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `put`, for coroutines. Where it is cancelled while it waits for room, the item is not put."""
        ref, token = self._send("put", block, timeout, _packed(item))
        if not await self._answer_async(ref, token):
            raise Full(self._no_room(block, timeout))

    def put_nowait(self, item: Any) -> None:
        """As `put(item, block=False)`."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all the items, in order and side by side, in one call; blocks for that. Raises Full if not all fit.

        Raises TypeError for what is no iterable, else as `put`.
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"put_nowait_batch() takes an iterable of items, got {items!r:.100}")
        batch = list(items)
        actor = self._living()
        if not batch:
            return
        serialized = serialize(batch, "the items", "items")
        payload = batch if _travels_as_itself(serialized) else to_bytes(serialized)
        size = get(actor.put_batch.remote(payload, len(batch)))
        if size is not None:
            raise Full(f"no room for {len(batch)} items in a queue of {size}, and at most {self.maxsize}")

    # -------------------------------------------------------------------------------------------------------- get

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the first item out. Blocks for one call, and while the queue is empty.

        Those who wait are served in the order in which they came. Raises Empty where there is nothing: at once
        without `block`, else after `timeout` seconds. ValueError for a negative timeout, ActorDiedError where the
        queue is gone.
        """
        ref, token = self._send("get", block, timeout)
        found = self._answer(ref, token)
        if not found:
            raise Empty(self._nothing(block, timeout))
        return _unpacked(found[0])

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `get`, for coroutines. Where it is cancelled, no item is lost."""
        ref, token = self._send("get", block, timeout)
        found = await self._answer_async(ref, token)
        if not found:
            raise Empty(self._nothing(block, timeout))
        return _unpacked(found[0])

    def get_nowait(self) -> Any:
        """As `get(block=False)`."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """The first `num_items` items, in order, in one call; blocks for that. Raises Empty if there are fewer.

        Cheapest where items are got in the batches that they were put in. TypeError and ValueError for what is no
        number of items.
        """
        count = as_index(num_items)
        if count is None:
            raise TypeError(f"get_nowait_batch() takes a number of items, got {num_items!r:.100}")
        if count < 0:
            raise ValueError(f"get_nowait_batch(): num_items must not be negative, got {count}")
        actor = self._living()
        if not count:
            return []
        found = get(actor.get_batch.remote(count))
        if type(found) is bytes:
            return unpack(found)  # type: ignore[no-any-return]
        if type(found) is int:
            raise Empty(f"{count} items were asked for, of a queue of {found}")
        items: list[Any] = []
        for entry in found:
            if type(entry) is Packed and entry.count:
                items += unpack(entry.data)
            else:
                items.append(_unpacked(entry))
        return items

    # ---------------------------------------------------------------------------------------------------- the end

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """Ends the queue and drops what is in it. What waits in a put or get raises ActorDiedError.

        Calls that this process made before are dealt with first, for at most `grace_period_s` seconds; not so with
        `force`. Harmless where it was called before. Afterwards this `Queue` raises RuntimeError when used.
        """
        actor, self.actor = self.actor, None
        if actor is None or not is_initialized():
            return
        if not force:
            wait([actor.qsize.remote()], timeout=grace_period_s)
        kill(actor)

    # ------------------------------------------------------------------------------------------------ one call

    def _living(self) -> Any:
        if self.actor is None:
            raise RuntimeError("this Queue was shut down, by its shutdown(); make another one")
        return self.actor

    def _send(
        self, method: str, block: bool, timeout: float | None, *arguments: Any
    ) -> tuple[ObjectRef, bytes | None]:
        """Calls a method that may wait. The token is what to name the call by where it is broken off."""
        call = getattr(self._living(), method)
        if not block:
            return call.remote(*arguments), None
        check_timeout(method, timeout)
        if timeout is not None:
            timeout = float(timeout)
        token = require_runtime().next_task_id()  # unlike any other, in any process
        return call.remote(*arguments, token, timeout), token

    def _answer(self, ref: ObjectRef, token: bytes | None) -> Any:
        try:
            return get(ref)
        except SkateError:
            raise
        except BaseException:
            self._break_off(ref, token)
            raise

    async def _answer_async(self, ref: ObjectRef, token: bytes | None) -> Any:
        try:
            return await ref
        except SkateError:
            raise
        except BaseException:
            self._break_off(ref, token)
            raise

    def _break_off(self, ref: ObjectRef, token: bytes | None) -> None:
        """Nobody waits for this call any more. What it brings nevertheless goes back."""
        if self.actor is None or ref.entry.home is not current.runtime:
            return
        if token is not None:
            self.actor.withdraw.remote(token)
        ref.future().add_done_callback(partial(_take_back, self.actor.put_back))

    @staticmethod
    def _no_room(block: bool, timeout: float | None) -> str:
        return f"the queue was full for {timeout} s" if block else "the queue is full"

    @staticmethod
    def _nothing(block: bool, timeout: float | None) -> str:
        return f"the queue was empty for {timeout} s" if block else "the queue is empty"


def _take_back(put_back: Any, answer: Future[Any]) -> None:
    """The answer to a call that was broken off: an item that it brings goes back to the front of the queue."""
    if answer.exception() is None and type(answer.result()) is tuple and answer.result():
        # The thread that reads the inbox must not block, which it would if the item were large and the store full.
        threading.Thread(
            target=put_back.remote, args=answer.result(), name="skate-queue", daemon=True
        ).start()


# ---------------------------------------------------------------------------------------------- how items travel


class Packed:
    """Pickled items: a batch of `count`, or with 0 a single one."""

    __slots__ = ("count", "data")

    def __init__(self, data: bytes, count: int) -> None:
        self.data = data
        self.count = count

    def __reduce__(self) -> tuple[type[Packed], tuple[bytes, int]]:
        return Packed, (self.data, self.count)


register_plain_type(Packed)


def _packed(item: Any) -> Any:
    """The item as it travels. Raises SerializationError."""
    if type(item) in SIMPLE or type(item) is ObjectRef:
        return item
    serialized = serialize(item, "the item", "item")
    return item if _travels_as_itself(serialized) else Packed(to_bytes(serialized), 0)


def _travels_as_itself(serialized: Serialized) -> bool:
    return bool(serialized.refs or (serialized.buffers and serialized.total_bytes > LARGE_BYTES))


def _unpacked(entry: Any) -> Any:
    """A single item as it was."""
    return unpack(entry.data) if type(entry) is Packed else entry


# ------------------------------------------------------------------------------------------------------ the actor


class _QueueActor:
    """Holds the items. All methods are coroutines, so that they run in one thread, each undisturbed between awaits.

    Invariants: gets wait only where there is no item, puts only where there is no room; each in the order in which
    they came. `_size` counts the items of `_entries`, where a Packed batch counts for its `count`.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize if maxsize > 0 else float("inf")
        self._entries: deque[Any] = deque()
        self._size = 0
        #: token -> what the waiting call gets: (item,), or () where there is none in time
        self._gets: OrderedDict[bytes, asyncio.Future[Any]] = OrderedDict()
        #: token -> whether the item was taken, and the item
        self._puts: OrderedDict[bytes, tuple[asyncio.Future[bool], Any]] = OrderedDict()

    async def qsize(self) -> int:
        return self._size

    async def put(self, item: Any, token: bytes | None = None, timeout: float | None = None) -> bool:
        """Whether the item was taken. With a token, waits for room."""
        if self._size < self._maxsize:
            self._append(item)
            return True
        if token is None:
            return False
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._puts[token] = taken, item
        try:
            return await _within(timeout, taken, False)
        finally:
            self._puts.pop(token, None)

    async def get(self, token: bytes | None = None, timeout: float | None = None) -> tuple[Any, ...]:
        """(item,), or () where there is none. With a token, waits for one."""
        if self._size:
            return (self._popleft(),)
        if token is None:
            return ()
        given: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._gets[token] = given
        try:
            return await _within(timeout, given, ())
        except asyncio.CancelledError:
            if given.done() and not given.cancelled() and given.result():
                self._append_first(given.result()[0])  # it was given an item in the same moment
            raise
        finally:
            self._gets.pop(token, None)

    async def put_batch(self, items: bytes | list[Any], count: int) -> int | None:
        """Takes all of a batch, or none: then it says how many items there are."""
        if self._size + count > self._maxsize:
            return self._size
        if type(items) is bytes and not self._gets:
            self._entries.append(Packed(items, count))
            self._size += count
        else:
            for item in unpack(items) if type(items) is bytes else items:
                self._append(item)
        return None

    async def get_batch(self, count: int) -> bytes | list[Any] | int:
        """A whole batch as it came, or a list of entries; where there are too few items, how many there are."""
        if count > self._size:
            return self._size
        entries = self._entries
        if type(entries[0]) is Packed and entries[0].count == count:
            self._size -= count
            whole: bytes = entries.popleft().data
            self._let_in()
            return whole
        found: list[Any] = []
        while count:
            if type(entries[0]) is Packed and entries[0].count > count:
                self._open_first()
            entry = entries.popleft()
            number = (entry.count or 1) if type(entry) is Packed else 1
            found.append(entry)
            count -= number
            self._size -= number
        self._let_in()
        return found

    async def put_back(self, item: Any) -> None:
        """An item that was got and did not arrive."""
        self._append_first(item)

    async def withdraw(self, token: bytes) -> None:
        """Nobody waits for this call any more."""
        if token in self._gets:
            _settle(self._gets.pop(token), ())
        elif token in self._puts:
            _settle(self._puts.pop(token)[0], False)

    # ------------------------------------------------------------------------------------------------ steps

    def _append(self, item: Any) -> None:
        if not self._give(item):
            self._entries.append(item)
            self._size += 1

    def _append_first(self, item: Any) -> None:
        if not self._give(item):
            self._entries.appendleft(item)
            self._size += 1

    def _give(self, item: Any) -> bool:
        """Gives an item to the get that has waited longest. False where none waits."""
        while self._gets:
            token, given = self._gets.popitem(last=False)
            if not _lives(token):
                _settle(given, ())
            elif _settle(given, (item,)):
                return True
        return False

    def _popleft(self) -> Any:
        """The first item; there is one. Whoever waited for room is let in."""
        if type(self._entries[0]) is Packed and self._entries[0].count:
            self._open_first()
        item = self._entries.popleft()
        self._size -= 1
        self._let_in()
        return item

    def _open_first(self) -> None:
        """Makes single items of the batch in front. Where that raises, the batch stays."""
        items = unpack(self._entries[0].data)
        self._entries.popleft()
        self._entries.extendleft(reversed(items))

    def _let_in(self) -> None:
        """Takes the items of the puts that wait, as far as there is room."""
        while self._puts and self._size < self._maxsize:
            _, (taken, item) = self._puts.popitem(last=False)
            if _settle(taken, True):
                self._append(item)


_ActorClass = remote(num_cpus=0, max_concurrency=WAITING_CALLS)(_QueueActor)


def _lives(token: bytes) -> bool:
    """Whether the process that made the token is there."""
    runtime = require_runtime()
    process = owner_of(token)
    return not runtime.references.has_died(process) and runtime.mailbox.has_inbox(process)


async def _within(timeout: float | None, future: asyncio.Future[Any], otherwise: Any) -> Any:
    """The future's result; `otherwise` where it has none after `timeout` seconds.

    Unlike asyncio.wait_for, this cannot lose a result that comes as the time is over.
    """
    if timeout is None:
        return await future
    timer = asyncio.get_running_loop().call_later(timeout, _settle, future, otherwise)
    try:
        return await future
    finally:
        timer.cancel()


def _settle(future: asyncio.Future[Any], result: Any) -> bool:
    """Gives the future a result, unless it has one, or was cancelled."""
    if future.done():
        return False
    future.set_result(result)
    return True

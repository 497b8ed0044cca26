"""Refs as futures: await in any loop, asyncio's helpers, concurrent.futures."""

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest
import skate
from skate.exceptions import TaskError

from .rendezvous import Gate

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def fail() -> None:
    raise LookupError("nothing here")


@skate.remote
def pass_gate(gate: Gate) -> str:
    gate.wait()
    return "through"


class TestAwait:
    def test_a_ref(self) -> None:
        async def main() -> object:
            return await identity.remote("x")

        assert asyncio.run(main()) == "x"

    def test_what_is_ready(self) -> None:
        async def main() -> object:
            return await skate.put("x")

        assert asyncio.run(main()) == "x"

    def test_twice(self) -> None:
        async def main() -> tuple[object, object]:
            ref = identity.remote("x")
            return await ref, await ref

        assert asyncio.run(main()) == ("x", "x")

    def test_a_failure(self) -> None:
        async def main() -> None:
            with pytest.raises(LookupError) as caught:
                await fail.remote()
            assert isinstance(caught.value, TaskError)

        asyncio.run(main())

    def test_one_ref_in_two_loops(self) -> None:
        ref = identity.remote("x")

        async def main() -> object:
            return await ref

        assert [asyncio.run(main()) for _ in range(2)] == ["x", "x"]

    def test_in_a_loop_of_another_thread(self) -> None:
        results = []

        async def main() -> None:
            results.append(await identity.remote("x"))

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join(20)
        assert results == ["x"]

    def test_in_a_task(self) -> None:
        @skate.remote
        def outer() -> list[object]:
            async def main() -> list[object]:
                return await asyncio.gather(*(identity.remote(i) for i in range(3)))

            return asyncio.run(main())

        assert skate.get(outer.remote()) == [0, 1, 2]

    def test_the_loop_goes_on_meanwhile(self, gate: Gate) -> None:
        async def main() -> object:
            async def open_gate() -> None:
                gate.open()

            ref = pass_gate.remote(gate)
            opener = asyncio.create_task(open_gate())  # runs only if the await below lets it
            value = await ref
            await opener
            return value

        assert asyncio.run(asyncio.wait_for(main(), 20)) == "through"


class TestAsyncio:
    def test_gather(self) -> None:
        async def main() -> list[object]:
            return await asyncio.gather(*(identity.remote(i) for i in range(200)))

        assert asyncio.run(main()) == list(range(200))

    def test_gather_with_failures(self) -> None:
        async def main() -> list[object]:
            return await asyncio.gather(identity.remote(1), fail.remote(), return_exceptions=True)

        one, failure = asyncio.run(main())
        assert one == 1
        assert isinstance(failure, LookupError)

    def test_wait_for(self, gate: Gate) -> None:
        async def main() -> None:
            ref = pass_gate.remote(gate)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(ref.future())), 0.05)
            gate.open()
            assert await ref == "through"

        asyncio.run(main())

    @pytest.mark.differs_from_ray("Ray's refs lack what asyncio.wait needs since Python 3.11")
    def test_wait(self, gate: Gate) -> None:
        async def main() -> None:
            slow, quick = pass_gate.remote(gate), identity.remote(1)
            done, pending = await asyncio.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
            assert (len(done), len(pending)) == (1, 1)
            gate.open()
            done, pending = await asyncio.wait([slow, quick])
            assert (len(done), len(pending)) == (2, 0)

        asyncio.run(main())

    def test_wait_over_wrapped_futures(self) -> None:
        async def main() -> set[object]:
            futures = [asyncio.wrap_future(identity.remote(i).future()) for i in range(5)]
            done, pending = await asyncio.wait(futures)
            assert not pending
            return {future.result() for future in done}

        assert asyncio.run(main()) == set(range(5))

    def test_as_completed(self) -> None:
        async def main() -> set[object]:
            futures = [asyncio.wrap_future(identity.remote(i).future()) for i in range(5)]
            return {await future for future in asyncio.as_completed(futures)}

        assert asyncio.run(main()) == set(range(5))


class TestFutures:
    def test_result(self) -> None:
        future = identity.remote("x").future()
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(timeout=20) == "x"
        assert future.done()

    def test_result_of_a_put(self) -> None:
        assert skate.put("x").future().result(timeout=20) == "x"

    def test_a_timeout(self, gate: Gate) -> None:
        future = pass_gate.remote(gate).future()
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout=0.05)
        gate.open()
        assert future.result(timeout=20) == "through"

    def test_exception(self) -> None:
        future = fail.remote().future()
        assert isinstance(future.exception(timeout=20), TaskError)
        with pytest.raises(TaskError, match="nothing here"):
            future.result()

    def test_callback(self) -> None:
        called = threading.Event()
        future = identity.remote("x").future()
        future.add_done_callback(lambda _: called.set())
        assert called.wait(20)

    def test_a_callback_may_get(self) -> None:
        results: list[object] = []
        called = threading.Event()

        def use(future: concurrent.futures.Future) -> None:
            results.append(future.result())
            called.set()

        identity.remote("x").future().add_done_callback(use)
        assert called.wait(20)
        assert results == ["x"]

    def test_as_completed(self, gate: Gate) -> None:
        slow, quick = pass_gate.remote(gate).future(), identity.remote("quick").future()
        order = concurrent.futures.as_completed([slow, quick], timeout=20)
        assert next(order).result() == "quick"
        gate.open()
        assert next(order).result() == "through"

    def test_the_ref_need_not_be_kept(self) -> None:
        futures = [identity.remote(i).future() for i in range(50)]
        assert [future.result(timeout=20) for future in futures] == list(range(50))


class TestCallbacks:
    def test_ctrl_c_in_one_that_is_called_at_once(self, gate: Gate) -> None:
        """It comes out where the callback was called: in what added it, or cancelled the future."""

        def interrupted(_: object) -> None:
            raise KeyboardInterrupt

        done, pending = skate.put(1).future(), pass_gate.remote(gate).future()
        assert done.result(timeout=20) == 1
        with pytest.raises(KeyboardInterrupt):
            done.add_done_callback(interrupted)
        pending.add_done_callback(interrupted)
        with pytest.raises(KeyboardInterrupt):
            pending.cancel()
        assert pending.cancelled()
        gate.open()

    def test_one_that_waits_itself(self) -> None:
        """It runs in the thread that reads the inbox: waiting there goes on reading."""
        got: list[int] = []
        done = threading.Event()

        def call(future: Any) -> None:
            got.append(future.result() + skate.get(identity.remote(2)))
            done.set()

        identity.remote(1).future().add_done_callback(call)
        assert done.wait(20)
        assert got == [3]

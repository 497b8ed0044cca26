"""Who holds what is inside an error, or a value that a process hands to itself; and calls that end before they begin.

The kind: an answer is an answer. Refs and handles inside a value live for whoever reads it, and so do those inside an
error, whoever raised it and however many tasks failed with it in turn.
"""

import gc

import numpy as np
import pytest
import skate
from skate.exceptions import ActorDiedError, TaskError

from .rendezvous import Gate

pytestmark = pytest.mark.usefixtures("cpu2")


@skate.remote
class Seven:
    def seven(self) -> int:
        return 7

    def fail(self, inside: object) -> None:
        raise ValueError("failed", skate.put([inside, 7]))

    async def fail_async(self) -> None:
        raise ValueError("failed", skate.put([None, 7]), Seven.options(num_cpus=0).remote())


@skate.remote
class Stillborn:
    def __init__(self, inside: object = None) -> None:
        raise ValueError("failed", inside)

    def seven(self) -> int:
        return 7


@skate.remote
def fail(inside: list) -> None:
    raise ValueError("failed", skate.put([inside, 7]))


@skate.remote
def pass_on(value: object) -> object:
    return value


def error_of(ref: skate.ObjectRef) -> BaseException:
    """What the task raised; nothing else of this process keeps what is inside."""
    with pytest.raises(TaskError) as caught:
        skate.get(ref, timeout=20)
    error = caught.value.cause
    del caught, ref
    gc.collect()
    skate.get(pass_on.remote(1))  # whatever was let go of has been dealt with
    return error


class TestErrors:
    def test_of_a_task_hold_what_is_inside(self) -> None:
        (value, seven) = skate.get(error_of(fail.remote([skate.put(1)])).args[1], timeout=20)
        assert (skate.get(value[0]), seven) == (1, 7)

    @pytest.mark.parametrize("how", ["cause", "context", "deep", "own pickling", "group"])
    def test_what_it_was_raised_from_and_while(self, how: str) -> None:
        """An error travels with its chain, and what is inside that lives as what is in itself does."""

        class Own(ValueError):
            def __reduce__(self):
                return Own, self.args

        @skate.remote
        def fail_in_turn(how: str) -> None:
            try:
                raise LookupError("first", skate.put([None, 7]))
            except LookupError as first:
                if how == "context":
                    raise ValueError("second")
                if how == "own pickling":
                    raise Own("second") from first
                if how == "group":
                    raise ExceptionGroup("second", [ValueError()]) from first
                if how == "deep":
                    try:
                        raise KeyError("between") from first
                    except KeyError as between:
                        raise ValueError("second") from between
                raise ValueError("second") from first

        error = error_of(fail_in_turn.remote(how))
        assert error.args[0] == "second"
        first = error.__context__ if how == "context" else error.__cause__
        if how == "deep":
            assert isinstance(first, KeyError)
            first = first.__cause__
        assert isinstance(first, LookupError)
        assert error.__suppress_context__ == (how != "context")
        assert skate.get(first.args[1], timeout=20) == [None, 7]

    def test_a_chain_that_cannot_travel_stays_behind(self) -> None:
        import threading

        @skate.remote
        def fail_in_turn(links: int) -> None:
            error = ValueError("second", 7)
            last: BaseException = error
            for _ in range(links):
                last.__cause__ = LookupError("first")
                last = last.__cause__
            last.__cause__ = last.__context__ = error if links > 1 else LookupError(threading.Lock())
            raise error

        for links in (0, 1, 2, 3_000):
            assert error_of(fail_in_turn.remote(links)).args == ("second", 7)

    def test_of_each_return_value(self) -> None:
        refs = fail.options(num_returns=3).remote([])
        errors = [error_of(ref) for ref in refs]
        del refs
        assert [skate.get(error.args[1], timeout=20)[1] for error in errors] == [7, 7, 7]

    def test_of_a_generator(self) -> None:
        @skate.remote
        def generate():
            yield 1
            raise ValueError("failed", skate.put([None, 7]))

        generator = generate.remote()
        refs = list(generator)
        error, whole = error_of(refs.pop()), error_of(generator.completed())
        del generator, refs
        assert skate.get([error.args[1], whole.args[1]], timeout=20) == [[None, 7]] * 2

    def test_of_methods_with_a_handle_inside(self) -> None:
        actor = Seven.options(num_cpus=0).remote()
        error = error_of(actor.fail_async.remote())
        assert skate.get(error.args[1], timeout=20)[1] == 7
        assert skate.get(error.args[2].seven.remote(), timeout=20) == 7

    def test_of_what_fails_in_turn(self) -> None:
        """The caller fails with a ref of its own, or of another process, without reading the error."""

        @skate.remote
        def fails_in_turn(refs: list) -> list:
            return [pass_on.remote(pass_on.remote(refs[0]))]

        first = fail.remote([])
        (there,) = skate.get(fails_in_turn.remote([first]), timeout=20)
        here = pass_on.remote(pass_on.remote(first))
        del first
        assert skate.get([error_of(here).args[1], error_of(there).args[1]], timeout=20) == [[[], 7]] * 2

    def test_of_a_task_that_is_tried_again(self) -> None:
        error = error_of(fail.options(max_retries=2, retry_exceptions=True).remote([]))
        assert skate.get(error.args[1], timeout=20) == [[], 7]

    def test_that_were_put(self) -> None:
        error = skate.get(skate.put(ValueError("mine", skate.put(7))))
        gc.collect()
        assert skate.get(error.args[1], timeout=20) == 7

    def test_of_a_constructor(self) -> None:
        actor = Stillborn.options(num_cpus=0).remote([skate.put(7)])
        with pytest.raises(ActorDiedError) as caught:
            skate.get(actor.seven.remote(), timeout=20)
        (ref,) = (
            caught.value.cause.cause.args[1]
            if isinstance(caught.value.cause, TaskError)
            else caught.value.cause.args[1]
        )
        del actor, caught
        gc.collect()
        assert skate.get(ref, timeout=20) == 7


class TestHandedToOneself:
    def test_the_value_of_a_task_that_a_worker_gave_itself(self) -> None:
        """One CPU is left: owner, executor, submitter and borrower are one process."""

        @skate.remote(num_cpus=2)
        def outer() -> list:
            @skate.remote(num_cpus=2)
            def inner() -> list:
                return [skate.put(1)]

            return [inner.remote()]

        (ref,) = skate.get(outer.remote(), timeout=20)
        (inside,) = skate.get(ref, timeout=20)
        del ref
        gc.collect()
        assert skate.get(inside, timeout=20) == 1

    def test_by_an_actor_that_calls_itself(self) -> None:
        @skate.remote(num_cpus=0)
        class Selfish:
            async def make(self, fails: bool) -> list:
                if fails:
                    raise ValueError("failed", skate.put(7))
                return [skate.put(7)]

            async def read(self, me: object) -> int:
                (ref,) = await me.make.remote(False)
                try:
                    await me.make.remote(True)
                except ValueError as error:
                    other = error.cause.args[1]
                gc.collect()
                return await ref + await other

        actor = Selfish.remote()
        assert skate.get(actor.read.remote(actor), timeout=20) == 14


class TestEndedOnce:
    """A call of a dead actor whose argument has failed lets go of its other arguments once."""

    @pytest.mark.parametrize("when", ["before", "later"])
    def test_with_a_failed_argument(self, when: str, gate: Gate) -> None:
        actor = Seven.options(num_cpus=0).remote()
        skate.get(actor.seven.remote())
        skate.kill(actor)
        good = skate.put(np.full(200_000, 7))

        @skate.remote
        def late() -> None:
            gate.wait()
            raise ValueError("late")

        failed = actor.seven.remote() if when == "before" else late.remote()
        with pytest.raises((ActorDiedError, TaskError)):
            skate.get(actor.__ray_call__.remote(lambda *_: None, failed, good), timeout=20)
        gate.open()
        with pytest.raises((ActorDiedError, TaskError)):
            skate.get(failed, timeout=20)
        assert good.entry.pins == 0, "its pins were let go of more than once, or not at all"

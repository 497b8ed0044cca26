"""Tries are counted exactly: after a death of the worker, and after an exception where it is asked for."""

import os

import pytest
import skate
from skate.exceptions import TaskError, WorkerCrashedError

from .rendezvous import Tally

pytestmark = pytest.mark.usefixtures("cpu2")


class Glitch(ConnectionError):
    pass


@skate.remote
def crash_until(attempt: int, tally: Tally) -> int:
    """Kill the worker at every attempt before this one."""
    if tally.add() < attempt:
        os._exit(1)
    return tally.count


@skate.remote
def raise_until(attempt: int, tally: Tally, error: Exception) -> int:
    if tally.add() < attempt:
        raise error
    return tally.count


class TestCrashes:
    def test_three_retries_unless_told_otherwise(self, tally: Tally) -> None:
        assert skate.get(crash_until.remote(4, tally)) == 4

    def test_and_no_more(self, tally: Tally) -> None:
        with pytest.raises(WorkerCrashedError):
            skate.get(crash_until.remote(99, tally))
        assert tally.count == 4

    @pytest.mark.parametrize("retries", [0, 1])
    def test_as_often_as_asked(self, retries: int, tally: Tally) -> None:
        with pytest.raises(WorkerCrashedError):
            skate.get(crash_until.options(max_retries=retries).remote(99, tally))
        assert tally.count == retries + 1

    def test_without_end(self, tally: Tally) -> None:
        assert skate.get(crash_until.options(max_retries=-1).remote(6, tally)) == 6

    def test_arguments_and_dependents_are_none_the_wiser(self, tally: Tally) -> None:
        @skate.remote
        def add(a: int, b: int) -> int:
            return a + b

        attempts = crash_until.remote(skate.put(2), tally)
        assert skate.get(add.remote(attempts, attempts)) == 4


class TestExceptions:
    def test_not_unless_asked(self, tally: Tally) -> None:
        with pytest.raises(Glitch):
            skate.get(raise_until.remote(2, tally, Glitch()))
        assert tally.count == 1

    def test_any(self, tally: Tally) -> None:
        assert skate.get(raise_until.options(retry_exceptions=True).remote(3, tally, KeyError())) == 3

    def test_no_more_than_max_retries(self, tally: Tally) -> None:
        task = raise_until.options(retry_exceptions=True, max_retries=2)
        with pytest.raises(Glitch) as caught:
            skate.get(task.remote(99, tally, Glitch("still")))
        assert isinstance(caught.value, TaskError)
        assert tally.count == 3

    def test_three_unless_told_otherwise(self, tally: Tally) -> None:
        with pytest.raises(Glitch):
            skate.get(raise_until.options(retry_exceptions=True).remote(99, tally, Glitch()))
        assert tally.count == 4

    def test_without_end(self, tally: Tally) -> None:
        task = raise_until.options(retry_exceptions=True, max_retries=-1)
        assert skate.get(task.remote(8, tally, Glitch())) == 8

    @pytest.mark.parametrize("listed", [[Glitch], (KeyError, Glitch), [ConnectionError], [OSError]], ids=repr)
    def test_those_listed(self, listed: object, tally: Tally) -> None:
        task = raise_until.options(retry_exceptions=listed)
        assert skate.get(task.remote(3, tally, Glitch())) == 3

    def test_not_those_that_are_not(self, tally: Tally) -> None:
        with pytest.raises(Glitch):
            skate.get(raise_until.options(retry_exceptions=[KeyError]).remote(3, tally, Glitch()))
        assert tally.count == 1

    def test_options_override_the_decorator(self, tally: Tally) -> None:
        @skate.remote(retry_exceptions=[Glitch], max_retries=5)
        def fail() -> None:
            tally.add()
            raise Glitch

        with pytest.raises(Glitch):
            skate.get(fail.options(retry_exceptions=False).remote())
        assert tally.count == 1
        with pytest.raises(Glitch):
            skate.get(fail.options(max_retries=1).remote())
        assert tally.count == 3

    def test_crashes_and_exceptions_share_the_count(self, tally: Tally) -> None:
        @skate.remote(max_retries=2, retry_exceptions=True)
        def misfortune() -> None:
            if tally.add() % 2:
                os._exit(1)
            raise Glitch

        with pytest.raises(WorkerCrashedError):
            skate.get(misfortune.remote())
        assert tally.count == 3

    def test_an_exception_of_several_results(self, tally: Tally) -> None:
        @skate.remote(num_returns=2, retry_exceptions=True)
        def pair() -> tuple[int, int]:
            if tally.add() < 3:
                raise Glitch
            return 1, 2

        assert skate.get(pair.remote()) == [1, 2]
        assert tally.count == 3

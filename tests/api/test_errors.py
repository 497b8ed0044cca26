"""What goes wrong in a task, as `get` tells it."""

import os
import signal
import sys
import threading

import pytest
import skate
from skate import exceptions
from skate.exceptions import RayError, RayTaskError, TaskError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cpu2")


class Outage(Exception):
    """An exception with more to it than a message."""

    def __init__(self, service: str, code: int) -> None:
        super().__init__(service, code)
        self.service = service
        self.code = code


class Keyworded(Exception):
    """One that pickle alone cannot bring back: its arguments are not in `args`."""

    def __init__(self, *, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __reduce__(self) -> tuple:
        return _keyworded, (self.reason,)


def _keyworded(reason: str) -> Keyworded:
    return Keyworded(reason=reason)


class Final(Exception):
    """Forbids subclasses."""

    def __init_subclass__(cls) -> None:
        raise TypeError("Final is final")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


@skate.remote
def throw(make: object) -> None:
    raise make()


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def divide(a: float, b: float) -> float:
    return a / b


def caught_from(ref: skate.ObjectRef) -> BaseException:
    with pytest.raises(Exception) as caught:
        skate.get(ref)
    return caught.value


class TestBothClasses:
    @pytest.mark.parametrize(
        "cls", [ValueError, KeyError, OSError, StopIteration, AssertionError, TimeoutError]
    )
    def test_its_own_and_task_error(self, cls: type[Exception]) -> None:
        error = caught_from(throw.remote(lambda: cls("why")))
        assert isinstance(error, cls)
        assert isinstance(error, TaskError)
        assert isinstance(error, RayError)
        assert "why" in str(error)

    def test_the_original_is_the_cause(self) -> None:
        error = caught_from(throw.remote(lambda: Outage("mail", 503)))
        assert type(error.cause).__name__ == "Outage"
        assert (error.cause.service, error.cause.code) == ("mail", 503)

    def test_attributes_are_there(self) -> None:
        error = caught_from(throw.remote(lambda: Outage("mail", 503)))
        assert isinstance(error, Outage)
        assert (error.service, error.code) == ("mail", 503)

    def test_an_init_that_needs_arguments(self) -> None:
        error = caught_from(throw.remote(lambda: Keyworded(reason="because")))
        assert isinstance(error, Keyworded)
        assert error.reason == "because"

    def test_a_class_that_forbids_subclasses(self) -> None:
        error = caught_from(throw.remote(lambda: Final("x")))
        assert type(error) is TaskError
        assert type(error.cause).__name__ == "Final"

    def test_a_group(self) -> None:
        error = caught_from(throw.remote(lambda: ExceptionGroup("two", [ValueError(1), KeyError(2)])))
        assert isinstance(error, ExceptionGroup)
        assert isinstance(error, TaskError)
        assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]

    def test_a_tasks_timeout_is_not_gets(self) -> None:
        error = caught_from(throw.remote(lambda: TimeoutError("the task's own")))
        assert not isinstance(error, exceptions.GetTimeoutError)

    def test_as_instanceof_cause(self) -> None:
        error = caught_from(divide.remote(1, 0))
        assert isinstance(error.as_instanceof_cause(), ZeroDivisionError)

    def test_each_of_several_results_has_it(self) -> None:
        for ref in throw.options(num_returns=2).remote(lambda: ValueError("both")):
            assert isinstance(caught_from(ref), ValueError)

    def test_again_and_again(self) -> None:
        ref = divide.remote(1, 0)
        assert all(isinstance(caught_from(ref), ZeroDivisionError) for _ in range(3))

    def test_it_can_travel_on(self) -> None:
        error = skate.get(identity.remote([caught_from(divide.remote(1, 0))]))[0]
        assert isinstance(error, ZeroDivisionError)
        assert isinstance(error, TaskError)


class TestStory:
    def test_names_function_process_file_and_line(self) -> None:
        @skate.remote
        def outer() -> None:
            def inner() -> None:
                raise ValueError("deep inside")

            inner()

        pid = skate.get(skate.remote(lambda: os.getpid()).remote())
        text = str(caught_from(outer.remote()))
        for part in ("outer", "in inner", "deep inside", os.path.basename(__file__), "pid="):
            assert part in text
        assert isinstance(pid, int)

    def test_leaves_out_the_runtimes_own_frames(self) -> None:
        text = str(caught_from(divide.remote(1, 0)))
        assert text.count('File "') == 1
        assert text.rstrip().endswith("ZeroDivisionError: division by zero")

    def test_keeps_what_it_came_from(self) -> None:
        @skate.remote
        def wrap() -> None:
            try:
                {}["missing"]
            except KeyError as error:
                raise RuntimeError("could not look it up") from error

        text = str(caught_from(wrap.remote()))
        assert "KeyError: 'missing'" in text
        assert "RuntimeError: could not look it up" in text

    def test_down_a_chain_the_root_cause_shows(self) -> None:
        ref = divide.remote(1, 0)
        for _ in range(3):
            ref = identity.remote(ref)
        error = caught_from(ref)
        assert isinstance(error, ZeroDivisionError)
        assert "division by zero" in str(error)

    def test_out_of_a_task_in_a_task(self) -> None:
        @skate.remote
        def outer() -> float:
            return skate.get(divide.remote(1, 0))

        error = caught_from(outer.remote())
        assert isinstance(error, ZeroDivisionError)
        assert "outer" in str(error)

    def test_a_task_may_handle_it(self) -> None:
        @skate.remote
        def outer() -> str:
            try:
                return skate.get(divide.remote(1, 0))
            except ZeroDivisionError:
                return "handled"

        assert skate.get(outer.remote()) == "handled"


class TestUnpicklable:
    def test_argument(self) -> None:
        with pytest.raises(TypeError, match="lock") as caught:
            identity.remote({"engine": threading.Lock()})
        assert "engine" in str(caught.value)

    def test_result(self) -> None:
        @skate.remote
        def make() -> dict[str, object]:
            return {"engine": threading.Lock()}

        error = caught_from(make.remote())
        assert isinstance(error, TaskError)
        assert isinstance(error, TypeError)
        assert "lock" in str(error)

    @pytest.mark.differs_from_ray("Ray's error says what, but not where")
    def test_the_path_to_it(self) -> None:
        @skate.remote
        def make() -> dict[str, object]:
            return {"car": [{"engine": threading.Lock()}]}

        assert "engine" in str(caught_from(make.remote()))
        with pytest.raises(TypeError, match=r"car.*engine"):
            identity.remote({"car": [{"engine": threading.Lock()}]})

    def test_exception(self) -> None:
        error = caught_from(throw.remote(lambda: Unpicklable()))
        assert isinstance(error, TaskError)
        assert "Unpicklable" in str(error)
        assert "holds a lock" in str(error)

    def test_an_exception_that_cannot_be_brought_back(self) -> None:
        class Stubborn(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__(f"{a} and {b}")  # so pickle calls Stubborn("1 and 2"), which fails

        error = caught_from(throw.remote(lambda: Stubborn(1, 2)))
        assert isinstance(error, RayError)  # Ray: an UnserializableException; better: a TaskError
        assert "1 and 2" in str(error)


class TestCrashes:
    def test_a_worker_that_dies(self) -> None:
        error = caught_from(skate.remote(max_retries=0)(lambda: os._exit(7)).remote())
        assert isinstance(error, WorkerCrashedError)

    def test_one_that_is_killed(self) -> None:
        kill = skate.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert isinstance(caught_from(kill.remote()), WorkerCrashedError)

    @pytest.mark.differs_from_ray("Ray's error points to log files")
    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (lambda: os._exit(7), "7"),
            (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
            (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        ],
        ids=["exit status", "SIGKILL", "SIGSEGV"],
    )
    def test_the_reason_and_its_last_words(self, end: object, reason: str) -> None:
        @skate.remote(max_retries=0)
        def die() -> None:
            print("famous last words", file=sys.stderr, flush=True)
            end()

        text = str(caught_from(die.remote()))
        assert reason in text
        assert "famous last words" in text

    def test_others_live_on(self) -> None:
        crash = skate.remote(max_retries=0)(lambda: os._exit(1)).remote()
        others = [identity.remote(i) for i in range(20)]
        assert isinstance(caught_from(crash), WorkerCrashedError)
        assert skate.get(others) == list(range(20))


class TestNames:
    """A program written for Ray finds the exceptions that it catches."""

    RAYS = (
        "ActorAlreadyExistsError ActorDiedError ActorHandleNotFoundError ActorPlacementGroupRemoved "
        "ActorUnavailableError ActorUnschedulableError AsyncioActorExit AuthenticationError "
        "CrossLanguageError GetTimeoutError LocalRayletDiedError NodeDiedError ObjectFetchTimedOutError "
        "ObjectFreedError ObjectLostError ObjectReconstructionFailedError ObjectRefStreamEndOfStreamError "
        "ObjectStoreFullError OutOfDiskError OutOfMemoryError OwnerDiedError PendingCallsLimitExceeded "
        "PlasmaObjectNotAvailable RayActorError RayChannelError RayChannelTimeoutError RayError "
        "RaySystemError RayTaskError ReferenceCountingAssertionError RpcError RuntimeEnvSetupError "
        "TaskCancelledError TaskPlacementGroupRemoved TaskUnschedulableError UnserializableException "
        "UserCodeException WorkerCrashedError"
    )

    @pytest.mark.parametrize("name", RAYS.split())
    def test_there(self, name: str) -> None:
        cls = getattr(exceptions, name)
        assert issubclass(cls, RayError)

    def test_relations(self) -> None:
        assert RayTaskError is TaskError
        assert issubclass(exceptions.GetTimeoutError, TimeoutError)
        assert issubclass(exceptions.ActorDiedError, exceptions.RayActorError)
        assert issubclass(exceptions.ActorUnavailableError, exceptions.RayActorError)
        assert issubclass(exceptions.OwnerDiedError, exceptions.ObjectLostError)
        assert issubclass(exceptions.ObjectFreedError, exceptions.ObjectLostError)

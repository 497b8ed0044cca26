"""Exceptions travel whole, arrive as the user's own class, and never stop the process that reads them."""

import asyncio
import dataclasses
import gc
import io
import linecache
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref

import cloudpickle
import pytest
from skate import dependencies, exception_transport, exceptions
from skate._c import plain
from skate.exceptions import (
    ActorDiedError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    SkateError,
    TaskCancelledError,
    TaskError,
    UnserializableException,
    WorkerCrashedError,
)
from skate.store.serialization import dump_function, load_function

RAY_NAMES = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OufOfBandObjectRefSerializationException",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]


class NeedsTwo(Exception):
    def __init__(self, left, right):
        super().__init__(f"{left}-{right}")
        self.left = left


class Rewords(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


class NeverCallsSuper(Exception):
    def __init__(self, a, b):
        self.a = a
        self.b = b


class Slotted(Exception):
    __slots__ = ("where",)

    def __init__(self, where):
        super().__init__("slotted")
        self.where = where


class OwnPickling(Exception):
    def __init__(self, number, *, unit):
        super().__init__(number)
        self.unit = unit

    def __reduce__(self):
        return _make_own, (self.args[0], self.unit)


def _make_own(number, unit):
    return OwnPickling(number, unit=unit)


class MyOSError(OSError):
    def __init__(self, path):
        super().__init__(2, "nope", path)
        self.path = path


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Final(Exception):
    def __init_subclass__(cls):
        raise TypeError("Final is final")


class HoldsLock(Exception):
    def __init__(self, url):
        super().__init__("no answer", threading.Lock())
        self.url = url
        self.lock = threading.Lock()


class PropertyArgs(Exception):
    @property
    def args(self):
        return ("mine",)


class Collides(Exception):
    def __init__(self):
        super().__init__("collision")
        self.pid = "the user's pid"
        self.cause = "the user's cause"

    @property
    def node(self):
        return "the user's node"


class OwnBase(BaseException):
    pass


class BreaksOnLoad(Exception):
    def __reduce__(self):
        return _refuse_to_load, ()


def _refuse_to_load():
    raise RuntimeError("will not load")


def failed(exc, function_name="f", pid=11, node="n1", **more):
    """What a worker makes of a task that raised `exc`."""
    try:
        raise exc
    except BaseException as raised:
        return TaskError.from_exception(raised, function_name, pid, node, **more)


def sent(error):
    """As it arrives in another process."""
    return plain.unpack(plain.to_bytes(plain.serialize(error)))


def got(exc):
    return sent(failed(exc)).as_instanceof_cause()


@pytest.mark.parametrize("name", RAY_NAMES)
def test_every_name_of_ray_exists(name):
    assert issubclass(getattr(exceptions, name), SkateError)


def test_all_lists_what_is_there():
    assert len(set(exceptions.__all__)) == len(exceptions.__all__)
    for cls in exceptions.EXCEPTION_TYPES:
        assert cls.__name__ in exceptions.__all__


def _instances():
    for cls in exceptions.EXCEPTION_TYPES:
        for args in (("text",), (), ("text", "more"), ("f", "Traceback", ValueError(1))):
            try:
                yield cls(*args)
            except TypeError:
                continue
            break
        else:
            raise AssertionError(f"no way found to make a {cls.__name__}")


@pytest.mark.parametrize("error", list(_instances()), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_all_pickle_with_their_attributes(error, dumps):
    error.extra = {"kept": [1]}
    copy = pickle.loads(dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert str(error)
    assert {k: repr(v) for k, v in vars(copy).items()} == {k: repr(v) for k, v in vars(error).items()}


def test_timeouts_and_lookalikes_have_the_bases_programs_catch():
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)
    assert issubclass(exceptions.SerializationError, TypeError)
    assert issubclass(exceptions.ActorAlreadyExistsError, ValueError)
    assert issubclass(exceptions.ReferenceCountingAssertionError, AssertionError)
    assert issubclass(exceptions.OwnerDiedError, exceptions.ObjectLostError)
    with pytest.raises(TimeoutError, match="after 2 s"):
        raise exceptions.GetTimeoutError("not there after 2 s")


# --- the user's exceptions ---------------------------------------------------------------------------------

TRAVELLERS = [
    ValueError("v"),
    KeyError("k"),
    StopIteration(4),
    OSError(2, "nope", "/x"),
    MyOSError("/y"),
    UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad"),
    ImportError("no", name="m", path="p"),
    NeedsTwo(1, 2),
    Rewords(5),
    NeverCallsSuper(1, b=2),
    Slotted("here"),
    OwnPickling(3, unit="m"),
    Frozen(7),
    OwnBase("b"),
    ExceptionGroup("several", [NeedsTwo(1, 2), ValueError(3)]),
]


@pytest.mark.parametrize("original", TRAVELLERS, ids=lambda exc: type(exc).__name__)
def test_arrives_as_both_classes_with_attributes(original):
    error = got(original)
    assert isinstance(error, TaskError)
    assert isinstance(error, type(original))
    assert type(error).__name__ == f"RayTaskError({type(original).__name__})"
    assert error.args == (error.cause,)
    for name in (
        "left",
        "code",
        "a",
        "b",
        "where",
        "unit",
        "errno",
        "filename",
        "path",
        "reason",
        "name",
        "value",
    ):
        if hasattr(original, name):
            assert getattr(error, name) == getattr(original, name), name
    assert type(error.cause) is type(original)
    assert repr(error.cause.args) == repr(original.args)
    assert (error.function_name, error.pid, error.node) == ("f", 11, "n1")


@pytest.mark.parametrize("original", TRAVELLERS, ids=lambda exc: type(exc).__name__)
def test_the_dual_can_be_raised_caught_and_sent_on(original):
    with pytest.raises(type(original)) as caught:
        raise got(original)
    again = sent(caught.value)
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
    assert again.args == (again.cause,)
    assert repr(again.cause.args) == repr(original.args)


def test_str_shows_the_remote_traceback_first_the_summary():
    text = str(got(Rewords(5)))
    first_line = text.splitlines()[0]
    assert first_line.startswith("f() failed (pid=11, node=n1): ")
    assert first_line.endswith("Rewords: code 5")
    assert "Traceback (most recent call last)" in text
    assert "in failed" in text


def test_dual_classes_are_made_once_and_do_not_keep_the_users_class():
    class Local(Exception):
        pass

    first, second = failed(Local()).as_instanceof_cause(), failed(Local()).as_instanceof_cause()
    assert type(first) is type(second)
    alive = weakref.ref(Local)
    del first, second, Local
    gc.collect()
    assert alive() is None


def test_except_star_reaches_into_a_group():
    seen = []
    try:
        raise got(ExceptionGroup("several", [NeedsTwo(1, 2), ValueError(3)]))
    except* NeedsTwo as group:
        seen += group.exceptions
    except* ValueError as group:
        seen += group.exceptions
    assert [type(exc) for exc in seen] == [NeedsTwo, ValueError]


def test_each_raise_has_an_exception_of_its_own():
    """Or the tracebacks of all the places that `get` it would pile up on one object."""
    for original in (ValueError(1), Exception("plain"), Final()):
        error = failed(original)
        assert error.as_instanceof_cause() is not error.as_instanceof_cause()


def test_plain_exceptions_need_no_dual():
    error = got(Exception("boom"))
    assert type(error) is TaskError
    assert error.args == (error.cause,)
    assert error.cause.args == ("boom",)


def test_class_that_forbids_subclassing_gives_plain_error_and_one_warning(caplog):
    class Sealed(Exception):
        def __init_subclass__(cls):
            raise RuntimeError("sealed")

    for _ in range(2):
        error = got(Sealed("f"))
        assert type(error) is TaskError
        assert isinstance(error.cause, Sealed)
        assert "Sealed: f" in str(error)
    assert ["Sealed cannot be combined" in record.message for record in caplog.records] == [True]


def test_where_names_collide_the_users_win_but_for_cause():
    error = got(Collides())
    assert error.pid == "the user's pid"
    assert error.node == "the user's node"
    assert isinstance(error.cause, Collides)
    assert error.task_error.pid == 11
    assert "pid=11" in str(error)


def test_exception_with_args_property():
    assert isinstance(got(PropertyArgs("x")), PropertyArgs)


def test_exceptions_that_hold_themselves():
    exc = ValueError("loop")
    exc.me = exc
    error = got(exc)
    assert error.cause.me is error.cause


@pytest.mark.parametrize("exc", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_what_steers_python_comes_out_as_a_plain_error(exc):
    error = got(exc)
    assert type(error) is TaskError
    assert type(error.cause) is type(exc)


def test_keyboard_interrupt_reads_as_cancelled():
    error = got(KeyboardInterrupt())
    assert isinstance(error, TaskCancelledError)
    assert isinstance(error, TaskError)
    assert not isinstance(error, KeyboardInterrupt)


def test_skates_own_errors_travel_like_users():
    error = got(WorkerCrashedError("g()", pid=5, exit_status=-9, likely_oom=True))
    assert isinstance(error, WorkerCrashedError)
    assert (error.exit_status, error.likely_oom) == (-9, True)
    assert error.task_error.pid == 11


def test_traceback_frames_are_let_go():
    class Big:
        pass

    def task():
        local = Big()
        task.alive = weakref.ref(local)
        try:
            raise KeyError(1)
        except KeyError as inner:
            raise ValueError(2) from inner

    try:
        task()
    except ValueError as raised:
        error = TaskError.from_exception(raised, "task", 1, "n")
    gc.collect()
    assert task.alive() is None
    assert "KeyError" in str(error)


def test_read_only_arrays_get_a_hint():
    numpy = pytest.importorskip("numpy")
    array = plain.unpack(plain.to_bytes(plain.serialize(numpy.zeros(3))))
    with pytest.raises(ValueError) as caught:
        array[0] = 1
    assert "a.copy()" in str(failed(caught.value))


# --- what cannot travel ------------------------------------------------------------------------------------


def test_unpicklable_parts_stay_behind_and_are_named():
    error = got(HoldsLock("http://x"))
    assert isinstance(error, HoldsLock)
    assert error.url == "http://x"
    assert error.cause.args[0] == "no answer"
    assert error.cause.args[1].startswith("<unlocked _thread.lock")
    assert not hasattr(error, "lock")
    assert "left behind: args[1]" in str(error)
    assert "lock (TypeError: cannot pickle" in str(error)


def test_text_arrives_when_the_class_cannot_be_pickled():
    class Unpicklable(Exception):
        lock = threading.Lock()

    error = got(Unpicklable("the reason"))
    assert type(error) is TaskError
    assert isinstance(error.cause, UnserializableException)
    assert "the reason" in str(error)
    assert "the reason" in str(error.cause)


def test_text_arrives_when_loading_fails_and_the_pickle_is_forwarded():
    error = sent(failed(BreaksOnLoad("why")))
    assert isinstance(error.cause, UnserializableException)
    assert "BreaksOnLoad: why" in str(error)
    assert "will not load" in str(error)
    further = sent(error)
    assert isinstance(further.cause, UnserializableException)
    assert "BreaksOnLoad: why" in str(further)


def test_class_unknown_in_the_other_process(tmp_path):
    (tmp_path / "only_here.py").write_text("class Odd(Exception):\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here

        data = pickle.dumps(failed(only_here.Odd("far away")))
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("only_here", None)
    elsewhere = pickle.loads(data)
    assert "Odd: far away" in str(elsewhere)
    assert "only_here" in str(elsewhere)
    sys.path.insert(0, str(tmp_path))
    try:
        back = pickle.loads(pickle.dumps(elsewhere)).as_instanceof_cause()
        assert type(back).__name__ == "RayTaskError(Odd)"
        assert back.cause.args == ("far away",)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("only_here", None)


def test_exceptions_of_main_arrive_in_a_fresh_process():
    script = textwrap.dedent("""
        import sys, pickle
        from skate.exceptions import TaskError
        class Mine(Exception):
            def __init__(self, a, b): super().__init__(a); self.b = b
        try: raise Mine(1, 2)
        except Mine as e: sys.stdout.buffer.write(pickle.dumps(TaskError.from_exception(e, "f", 1, "n")))
    """)
    data = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    error = pickle.loads(data).as_instanceof_cause()
    assert type(error).__name__ == "RayTaskError(Mine)"
    assert (error.cause.args, error.b) == ((1,), 2)


def test_broken_str_and_repr():
    class Rude(Exception):
        def __str__(self):
            raise RuntimeError("no")

        __repr__ = __str__

    assert "Rude" in str(got(Rude()))
    assert exception_transport.dump(Rude()).data is not None


def test_an_exception_that_cannot_be_looked_at():
    class Evil(Exception):
        @property
        def __notes__(self):
            raise SystemError("do not look")

    assert "Evil" in str(got(Evil()))


# --- chains ------------------------------------------------------------------------------------------------


def test_root_cause_shows_through_tasks_that_got_it_and_tasks_that_waited_for_it():
    first = got(NeedsTwo(1, 2))
    second = sent(failed(first, "g", 22, "n2"))
    third = sent(TaskError.from_exception(second, "h", 33, "n3")).as_instanceof_cause()
    assert isinstance(third, NeedsTwo)
    assert third.left == 1
    assert third.function_name == "f"
    assert [step.function_name for step in third.via] == ["g", "h"]
    text = str(third)
    assert text.index("f() failed") < text.index("which made g() fail") < text.index("which made h() fail")
    assert text.count("Traceback (most recent call last)") == 1
    assert "it was to have that result as an argument" in text


def test_an_exception_raised_from_a_failed_task_is_the_new_root():
    def wraps():
        try:
            raise got(KeyError("root"))
        except KeyError as inner:
            raise RuntimeError("wrapped") from inner

    try:
        wraps()
    except RuntimeError as raised:
        error = TaskError.from_exception(raised, "g", 1, "n").as_instanceof_cause()
    assert isinstance(error, RuntimeError)
    assert "KeyError: 'root'" in str(error)


def test_long_chains_keep_their_ends():
    error = failed(ValueError("deep"), "f0")
    for depth in range(1, 1001):
        error = TaskError.from_exception(error, f"f{depth}", depth, "n")
    assert len(error.via) == TaskError.VIA_LIMIT
    assert error.via[0].function_name == "f1"
    assert error.via[-1].function_name == "f1000"
    assert "992 more tasks" in str(error)
    assert len(pickle.dumps(error)) < 5000


# --- messages ----------------------------------------------------------------------------------------------


def test_worker_crash_says_what_to_do():
    text = str(WorkerCrashedError("f()", pid=7, exit_status=-9, stderr_tail="last words\n", likely_oom=True))
    assert "pid=7" in text
    assert "SIGKILL" in text
    assert "memory=" in text
    assert text.endswith("last words")
    assert "sys.exit()" in str(WorkerCrashedError("f()", exit_status=3))
    assert "its node, 0a0b, is dead: it stood still" in str(
        WorkerCrashedError("f()", node="0a0b", node_died="it stood still")
    )


def test_store_full_lists_the_largest():
    text = str(
        ObjectStoreFullError(needed_bytes=10**9, capacity_bytes=10**8, largest=[(b"\xab", 5000, "pid 3")])
    )
    assert "1,000,000,000" in text
    assert "ab  5,000 bytes  pid 3" in text
    assert "object_store_memory" in text


def test_actor_died_takes_a_task_error_or_words():
    broken = ActorDiedError(failed(ValueError("in init"), "A.__init__", actor_id="abc"))
    assert broken.actor_init_failed
    assert broken.actor_id == "abc"
    assert "in init" in str(broken)
    killed = ActorDiedError("It was killed with kill().", actor_id=b"\x01", class_name="A", pid=4)
    assert "actor id: 01" in str(killed)
    assert "killed with kill()" in str(killed)


def test_reconstruction_reason():
    error = ObjectReconstructionFailedError(b"\x0a", "PUT")
    assert "0a" in str(error)
    assert "put()" in str(error)


# --- the first line, and what it says -------------------------------------------------------------------------


def noted(error, note):
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (ValueError("singular:\n  [0 0]\n  [0 0]"), "ValueError: singular:"),
        (AssertionError("\nNot equal to tolerance\n DESIRED: 1"), "AssertionError: Not equal to tolerance"),
        (noted(KeyError("k"), "a note\n  with an indented line"), "KeyError: 'k'"),
        (ValueError("a\nTraceback (most recent call last):\n  File"), "ValueError: a"),
        (ValueError(), "ValueError"),
        (ValueError("\n\n"), "ValueError:"),
        (ValueError("x\r\n y"), "ValueError: x"),
        (
            ExceptionGroup("all of them", [ValueError(1), KeyError(2)]),
            "ExceptionGroup: all of them (2 sub-exceptions)",
        ),
        (SyntaxError("bad", ("cell", 1, 2, "a b")), "SyntaxError: bad"),
    ],
    ids=repr,
)
def test_the_first_line_is_the_exceptions(error, summary):
    """However many lines the message has, indented or empty ones, and whatever stands below it."""
    first = str(failed(error)).splitlines()[0]
    assert first == f"f() failed (pid=11, node=n1): {summary}"
    assert str(sent(failed(error))).splitlines()[0] == first


@pytest.mark.parametrize("name", ["skip", "xfail", "fail"])
def test_outcomes_of_tests_stay_what_they_are(name):
    """An outcome is no Exception, and pytest's own classes say that they are built in."""
    with pytest.raises(getattr(pytest, name).Exception) as caught:
        getattr(pytest, name)("for a reason")
    error = sent(failed(caught.value)).as_instanceof_cause()
    assert type(error) is type(caught.value)
    assert error.msg == "for a reason"
    assert isinstance(error.__cause__, TaskError)
    assert not isinstance(error, Exception)


def test_every_wording_of_a_write_to_a_shared_array_gets_a_hint():
    """numpy has six of them; scipy, memoryviews, ctypes and Cython have their own. Files and attributes have none."""
    import numpy as np
    import scipy.fft

    shared = plain.unpack(plain.to_bytes(plain.serialize(np.zeros(100))))
    writes = {
        "assignment": lambda: shared.__setitem__(0, 1),
        "in place": lambda: shared.__iadd__(1),
        "out": lambda: np.add(shared, 1, out=shared),
        "setflags": lambda: shared.setflags(write=True),
        "sort": lambda: shared.sort(),
        "place": lambda: np.place(shared, shared == 0, 1),
        "resize": lambda: shared.resize(3),
        "shuffle": lambda: np.random.default_rng().shuffle(shared),
        "random": lambda: np.random.default_rng().random(out=shared),
        "scipy": lambda: scipy.fft.fft(shared.view(complex), overwrite_x=True),
        "memoryview": lambda: memoryview(shared).cast("B").__setitem__(0, 1),
        "readinto": lambda: io.BytesIO(b"x").readinto(memoryview(shared).cast("B")),
        "ctypes": lambda: np.ctypeslib.as_ctypes(shared),
        "ndpointer": lambda: np.ctypeslib.ndpointer(float, flags="W").from_param(shared),
    }

    for name, write in writes.items():
        with pytest.raises(Exception) as caught:
            write()
        assert "a.copy()" in str(failed(caught.value)), (name, caught.value)
    for other in (
        ValueError("buffer source array is read-only"), TypeError("Cannot modify readonly array of type: array"),
    ):  # fmt: skip
        assert "a.copy()" in str(failed(other))
    for other in (
        OSError(30, "Read-only file system", "array.npy"), AttributeError("readonly attribute of the array"),
        ValueError("the database is read-only"),
    ):  # fmt: skip
        assert "a.copy()" not in str(failed(other))


# --- whose lines a traceback shows ------------------------------------------------------------------------------


def function_of(source, filename):
    namespace = {"__name__": "__main__"}
    exec(compile(source, filename, "exec"), namespace)
    return namespace["f"]


SOURCE = "def f():\n    wrong = 0\n    return 1 / wrong\n"


def told_elsewhere(function, forget=()):
    """What a process tells of it that has nothing but the function's pickle."""
    data = dump_function(function).data
    for name in forget:
        linecache.cache.pop(name, None)
    try:
        load_function(data)()
    except ZeroDivisionError as error:
        return str(TaskError.from_exception(error, "f", 1, "n"))
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("name", ["/tmp/ipykernel_17/1234.py", "<ipython-input-3>", "cell 5"])
def test_a_cells_source_travels_with_its_functions(name):
    """Source that no file has: of a notebook, of an interactive session, made by a library."""
    linecache.cache[name] = len(SOURCE), None, SOURCE.splitlines(True), name
    try:
        text = told_elsewhere(function_of(SOURCE, name), [name])
        assert f'File "{name}", line 3, in f\n    return 1 / wrong' in text
        assert (
            dump_function(function_of(SOURCE, name)).digest == dump_function(function_of(SOURCE, name)).digest
        )
    finally:
        linecache.cache.pop(name, None)
        dependencies._arrived_sources.pop(name, None)


def test_a_files_source_is_read_where_it_is_shown(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(SOURCE)
    assert f'File "{path}", line 3, in f\n    return 1 / wrong' in told_elsewhere(
        function_of(SOURCE, str(path))
    )


def test_a_compiled_modules_frame_shows_no_other_files_line():
    """Its file is named relative to where it was built; the standard library has one of that name, on sys.path."""
    text = told_elsewhere(function_of(SOURCE, "queue.py"))
    assert '  File "queue.py", line 3, in f\nZeroDivisionError' in text


def test_few_sources_are_kept(monkeypatch):
    monkeypatch.setattr(dependencies, "SOURCES_KEPT", 3)
    monkeypatch.setattr(dependencies, "_arrived_sources", {})
    for n in range(5):
        dependencies._named_code(lambda: compile("1", "x", "eval"), (), f"cell {n}", "1\n")
    assert [f"cell {n}" in linecache.cache for n in range(5)] == [False, False, True, True, True]
    for n in range(5):
        linecache.cache.pop(f"cell {n}", None)

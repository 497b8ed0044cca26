"""What is raised for a task that failed: TaskError, and the classes it stands on.

A leaf beside `skate.exceptions`, which is where users find these names. Owns a cache: for each class of
users' exceptions, the class that is both that and a TaskError. Callers: workers (`from_exception`), `get`
(`as_instanceof_cause`), owners that fail what depends on a failed task.

Invariants: the text of a traceback always arrives, the exception object if it can; through any chain of
tasks the error speaks of the first that failed; what `get` raises never stops the process that called it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import types
import weakref
from typing import Any, NamedTuple

from skate import dependencies, exception_transport

logger = logging.getLogger("skate")

_SHOWN_MODULE = "skate.exceptions"  # where users find these classes, and what tracebacks call them


def name_of(identifier: bytes | str | None) -> str:
    """An id as people see it."""
    if identifier is None:
        return "(unknown)"
    return identifier.hex() if isinstance(identifier, bytes) else str(identifier)


class SkateError(Exception):
    """The base of all exceptions that skate raises."""

    __module__ = _SHOWN_MODULE

    def __reduce__(self) -> tuple:
        return exception_transport.reduce(self)


class TaskCancelledError(SkateError):
    """The task was cancelled, before it ran or while it ran."""

    __module__ = _SHOWN_MODULE

    def __init__(self, task_id: bytes | str | None = None, error_message: str | None = None) -> None:
        which = f"Task {name_of(task_id)} was cancelled." if task_id else ""
        super().__init__(" ".join(part for part in (which, error_message) if part) or "A task was cancelled.")
        self.task_id = task_id
        self.error_message = error_message


class FailedStep(NamedTuple):
    """A task that failed because another had."""

    function_name: str
    pid: int
    node: str
    frames: str  #: where in it the other's error surfaced; empty where it never started

    def __str__(self) -> str:
        head = f"which made {self.function_name}() fail{place_of(self.pid, self.node)}"
        return (
            f"{head}:\n{self.frames}" if self.frames else f"{head}: it was to have that result as an argument"
        )


class UnserializableException(SkateError):
    """Stands for an exception that could not be pickled, or not unpickled; its text says which and why."""

    __module__ = _SHOWN_MODULE

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self.original_stack_trace = original_stack_trace


class TaskError(SkateError):
    """A task raised an exception. `get` raises it as an instance of the user's exception class as well.

    function_name, pid, node   which task, and where it ran
    traceback_str              its traceback as text, skate's own frames left out
    cause                      the user's exception; an UnserializableException where that could not travel. It is also
                               the only one of `args`
    via                        the tasks that failed in turn because this one did, the nearest first
    actor_id, actor_repr       set for a call of an actor

    Through a chain of tasks all of these but `via` speak of the first that failed.
    """

    __module__ = _SHOWN_MODULE

    function_name: str
    traceback_str: str
    cause: BaseException
    pid: int
    node: str
    via: tuple[FailedStep, ...]

    #: steps kept of a long chain: the first and the last few
    VIA_LIMIT = 8

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
        *,
        node: str = "",
    ) -> None:
        super().__init__(cause)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle or f"skate::{function_name}"
        self.pid = os.getpid() if pid is None else pid
        self.node = node or ip or ""
        self.ip = ip or node
        self.actor_repr = actor_repr
        self.actor_id = actor_id
        #: the line that names the exception
        self.summary = _summary(cause)
        self.note = ""
        self.via = ()
        self.via_skipped = 0

    @classmethod
    def from_exception(
        cls,
        exc: BaseException,
        function_name: str,
        pid: int,
        node: str,
        *,
        actor_id: str | None = None,
        actor_repr: str | None = None,
    ) -> TaskError:
        """The error of task `function_name`, which raised `exc` or was to have its result as an argument.

        An `exc` that is a TaskError itself stays what it is, and this task is added to the end of `via`.
        The traceback becomes text and is dropped: its frames would keep the task's arguments alive.
        """
        if isinstance(exc, TaskError):
            step = FailedStep(function_name, pid, node, _user_frames(exc))
            drop_tracebacks(exc)
            return exc.task_error._failed_in_turn(step)
        text = _format(exc)
        drop_tracebacks(exc)
        if isinstance(exc, KeyboardInterrupt):  # that is how a running task is told to stop
            exc = TaskCancelledError(error_message=f"{function_name}() was interrupted (KeyboardInterrupt).")
        return cls(function_name, text, exc, pid=pid, actor_repr=actor_repr, actor_id=actor_id, node=node)

    @property
    def task_error(self) -> TaskError:
        """This error as a TaskError alone, not also of the user's class."""
        return self

    def as_instanceof_cause(self) -> BaseException:
        """An exception to raise, new at each call: a TaskError that is an instance of the cause's class too.

        It has the attributes of the cause (the user's win where names collide, except `cause` itself). An outcome of
        a test (pytest's skip, xfail, fail) is raised as what it is, from the TaskError: it has to pass by whoever
        catches an Exception.
        Where the cause's class cannot be combined with TaskError: a plain TaskError, and a warning in the
        log, one a class.
        """
        cause_class = type(self.cause)
        if any(base.__module__ == "_pytest.outcomes" for base in cause_class.__mro__) and not isinstance(
            self.cause, Exception
        ):
            outcome = exception_transport.rebuild(cause_class, self.cause)
            outcome.__cause__ = self._copy()
            return outcome
        if (
            isinstance(self, cause_class)
            or cause_class is UnserializableException
            or _steers_python(cause_class)
        ):
            return self._copy()
        try:
            return _new_dual(_dual_class(cause_class), self)
        except Exception as error:  # whatever the user's class does when it is subclassed
            _warn_cannot_combine(cause_class, error)
            return self._copy()

    def __str__(self) -> str:
        return self._text()

    def _text(self) -> str:
        text = self.traceback_str.strip()
        where = f"{self.actor_repr}." if self.actor_repr else ""
        parts = [
            f"{where}{self.function_name}() failed{place_of(self.pid, self.node)}: {self.summary}\n\n{text}"
        ]
        shown = [str(step) for step in self.via]
        if self.via_skipped:
            shown.insert(self.VIA_LIMIT // 2, f"… {self.via_skipped} more tasks in between …")
        hints = [
            self.note and f"The exception object did not travel whole: {self.note}",
            _hint(self.cause, self.summary),
        ]
        return "\n\n".join(part for part in [*parts, *shown, *hints] if part)

    def _copy(self) -> TaskError:
        copy = TaskError.__new__(TaskError, *self.args)
        vars(copy).update(vars(self))
        return copy

    def _failed_in_turn(self, step: FailedStep) -> TaskError:
        copy = self._copy()
        via = (*self.via, step)
        if len(via) > self.VIA_LIMIT:
            keep = self.VIA_LIMIT // 2
            via = via[:keep] + via[keep + 1 :]
            copy.via_skipped = self.via_skipped + 1
        copy.via = via
        return copy

    def __reduce__(self) -> tuple:
        """The text first: it arrives whether or not the cause, a pickle inside the pickle, can be loaded."""
        fields = {name: value for name, value in vars(self).items() if name not in ("cause", "_cause_pickle")}
        forwarded = getattr(self, "_cause_pickle", None)
        if forwarded is not None:  # it could not be loaded here; the next process may have the class
            data, refs = forwarded
            return _load_task_error, (fields, data, str(self.cause), refs)
        dumped = exception_transport.dump(self.cause)
        if dumped.note:
            fields["note"] = dumped.note
        return _load_task_error, (fields, dumped.data, dumped.note, dumped.refs)


def _load_task_error(
    fields: dict[str, Any], cause_pickle: bytes | None, note: str, refs: tuple[Any, ...]
) -> TaskError:
    """`refs` are those in `cause_pickle`: in a process that cannot load that they live as long as the error does."""
    error = TaskError.__new__(TaskError)
    vars(error).update(fields)
    if cause_pickle is None:
        error.cause = UnserializableException(f"{error.summary} (could not be pickled: {note})")
    else:
        try:
            error.cause = exception_transport.load(cause_pickle)
        except Exception as load_error:  # its class is missing here, or its own unpickling raises
            reason = f"{type(load_error).__name__}: {load_error}"
            error.note = f"it could not be unpickled in this process ({reason})"
            error.cause = UnserializableException(f"{error.summary} ({error.note})")
            vars(error)["_cause_pickle"] = cause_pickle, refs
    error.args = (error.cause,)
    return error


class _Dual:
    """What `_dual_class` adds to TaskError and the user's class; first in their MRO."""

    cause: BaseException

    @property
    def task_error(self) -> TaskError:
        return vars(self)["_task_error"]

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Does nothing: `_new_dual` fills the instance in, and the user's `__init__` must not run twice."""

    def __str__(self) -> str:
        return self.task_error._text()

    def __reduce__(self) -> tuple:
        return _load_dual, (self.task_error,)

    def __reduce_ex__(self, protocol: object) -> tuple:
        return _Dual.__reduce__(self)

    def as_instanceof_cause(self) -> BaseException:
        return self.task_error.as_instanceof_cause()


#: id of a user's class -> its dual, while that lives. The dual keeps the user's class alive, so the id holds.
_duals: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()
#: those of classes that stay. A class is a cycle by itself: one made at each error would be garbage at each
_kept_duals: list[type] = []
#: the classes that a warning has been given for
_warned: weakref.WeakSet[type] = weakref.WeakSet()


def _dual_class(cause_class: type[BaseException]) -> type:
    """The subclass of both TaskError and `cause_class`. Raises what subclassing the user's class raises."""
    dual = _duals.get(id(cause_class))
    if dual is None:
        name = f"RayTaskError({cause_class.__name__})"  # as in Ray, whose users read it
        bases = (_Dual, TaskError, cause_class)
        dual = types.new_class(name, bases, {}, lambda body: body.update(__module__=_SHOWN_MODULE))
        _duals[id(cause_class)] = dual
        if getattr(sys.modules.get(cause_class.__module__), cause_class.__name__, None) is cause_class:
            _kept_duals.append(dual)
    return dual


def _new_dual(dual: type, error: TaskError) -> TaskError:
    instance: Any = exception_transport.rebuild(dual, error.cause)
    fields = vars(instance)
    for name, value in vars(error).items():
        fields.setdefault(name, value)
    fields["cause"] = error.cause
    fields["_task_error"] = error._copy()
    BaseException.args.__set__(instance, (error.cause,))  # type: ignore[attr-defined]  # past a property of the user's
    return instance


def _load_dual(error: TaskError) -> BaseException:
    return error.as_instanceof_cause()


_STEER_NOTHING = (BaseException, BaseExceptionGroup, object)


def _steers_python(cls: type[BaseException]) -> bool:
    """KeyboardInterrupt, SystemExit, GeneratorExit, asyncio's CancelledError and their subclasses.

    Raised in the process that called `get` they would stop that process, generator or coroutine, which nobody
    asked for; they come out as plain task errors.
    """
    return not issubclass(cls, Exception) and any(
        base.__module__ in ("builtins", "asyncio.exceptions") and base not in _STEER_NOTHING
        for base in cls.__mro__
    )


def _warn_cannot_combine(cls: type, error: Exception) -> None:
    if cls in _warned:
        return
    _warned.add(cls)
    logger.warning(
        "%s.%s cannot be combined with TaskError (%s: %s), so `except %s` does not catch it when it comes "
        "from a task. Catch skate.exceptions.TaskError and look at its .cause.",
        cls.__module__,
        cls.__qualname__,
        type(error).__name__,
        error,
        cls.__name__,
    )


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _is_ours(filename: str) -> bool:
    """Whether a frame is skate's own; compiled modules' frames carry paths relative to the source tree."""
    return filename.startswith((_PACKAGE, "pyx/skate/", "pkg/skate/"))


def _leave_out_our_frames(report: traceback.TracebackException, seen: set[int]) -> None:
    """In place, in all exceptions that `report` leads to. Where an error has only our frames they stay."""
    if id(report) in seen:
        return
    seen.add(id(report))
    theirs = [frame for frame in report.stack if not _is_ours(frame.filename)]
    report.stack[:] = [_with_its_own_line(frame) for frame in theirs or report.stack]
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if other is not None:
            _leave_out_our_frames(other, seen)


def _with_its_own_line(frame: traceback.FrameSummary) -> traceback.FrameSummary:
    """The frame, without a line of source where that would be another file's.

    Compiled modules name their files relative to where they were built, and such a name is looked for on sys.path,
    where it may be the standard library's.
    """
    name = frame.filename
    known = os.path.isabs(name) or name.startswith("<") or os.path.exists(name)
    if known or dependencies.is_without_file(name):
        return frame
    return traceback.FrameSummary(name, frame.lineno, frame.name, lookup_line=False, line="")


def _format(exc: BaseException) -> str:
    try:
        report = traceback.TracebackException.from_exception(exc, lookup_lines=False)
        _leave_out_our_frames(report, set())
        return "".join(report.format())
    except Exception as error:  # an exception may do anything when it is looked at
        frames = "".join(traceback.format_tb(exc.__traceback__))
        reason = f"(formatting it raised {type(error).__name__})"
        return f"Traceback (most recent call last):\n{frames}{type(exc).__qualname__} {reason}\n"


def _user_frames(exc: BaseException) -> str:
    stack = traceback.extract_tb(exc.__traceback__)
    theirs = [_with_its_own_line(frame) for frame in stack if not _is_ours(frame.filename)]
    return "".join(traceback.format_list(theirs)).rstrip()


def drop_tracebacks(exc: BaseException | None) -> None:
    """In place, of all that it leads to."""
    seen: set[int] = set()
    todo = [exc]
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        BaseException.with_traceback(link, None)  # never by a user's __setattr__
        todo += [link.__cause__, link.__context__]


def _summary(exc: BaseException) -> str:
    """The exception's class and the first line of its message, whatever else the message has."""
    try:
        parts = traceback.format_exception_only(exc)
    except Exception as error:  # an exception may do anything when it is looked at
        return f"{type(exc).__qualname__} (formatting it raised {type(error).__name__})"
    # a SyntaxError begins with the place in its source
    text = "".join(parts[next((at for at, part in enumerate(parts) if not part.startswith(" ")), 0) :])
    first, _, rest = text.partition("\n")
    if (
        first.endswith(": ") and rest.strip() and len(parts[0]) > len(first) + 1
    ):  # a message that begins with an empty line
        return first + rest.strip().partition("\n")[0]
    return first.rstrip()


def place_of(pid: int, node: str) -> str:
    return f" (pid={pid}, node={node})" if node else f" (pid={pid})"


#: what numpy, scipy, the buffer protocol, Cython and others call memory that is not to be written to
_READ_ONLY = re.compile(
    r"read-?only|not writ(e)?able|writeable\b|must be [\w, -]*writable|read-write|own its data", re.I
)
_MEMORY = re.compile(r"array|buffer|memory|destination|\bbase\b|bytes-like|object is not writable", re.I)


def _hint(exc: BaseException, summary: str) -> str:
    if isinstance(exc, OSError | AttributeError):  # of files and of attributes
        return ""
    if _READ_ONLY.search(summary) and _MEMORY.search(summary):
        return (
            "Hint: arrays that come out of skate are read-only, because every process shares the same bytes. "
            "Write to a copy: `a = a.copy()`."
        )
    return ""

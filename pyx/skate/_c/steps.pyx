"""Steps that nothing of the program's interrupts: no signal handler, no finalizer, no callback.

State: for each thread how many sections it is in; of `Steps`, a runtime's lock, what was put off until it is free.

Python runs a program's code at nearly any moment: the handler of a signal between two bytecodes of the main thread, a
finalizer where an allocation starts the collector. Such code may call the runtime, so it must not run where its thread
holds the lock (it would wait for itself), and it may raise, so it must not run where something is half changed. Asking
each place to be safe against that is hopeless; here both are put off for the length of a section.

What this rests on in CPython 3.11 to 3.13, all of it in this file:

* Handlers run in the thread that `_PyRuntime.main_thread` names, and in no other: eval loop and PyErr_CheckSignals look
  there (`_Py_ThreadCanHandleSignals`) and leave a signal pending where it is another. So the main thread sets that field
  aside in a section. (To all other threads nothing changes: none was the main thread before.) Blocking signals with
  pthread_sigmask would not do: another thread takes the signal, and Python runs the handler in the main thread all the
  same. Pending calls (Py_AddPendingCall) wait as signals do.
* Where a signal is pending, the eval loop looks only if its `eval_breaker` says so, which a switch of threads in a
  section clears, or a look that may not see it: it is set again.
* The collector starts by itself when more was allocated than `threshold` of a generation says, so that is put out of
  reach, for the whole process, while any thread is in a section. (PyGC_Disable would do the same, but threads that call
  gc.disable() or gc.isenabled() meanwhile would get in its way.)

The module looks when it is imported whether this Python is so.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections import deque

from skate.untouched import who_patched_threads

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)
from libc.math cimport ceil
from posix.unistd cimport read as c_read

cdef extern from "sys/epoll.h":
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        unsigned int events
        epoll_data_t data

cdef extern from *:
    """
    #undef _PyGC_FINALIZED  /* Python 3.12's header defines it as a macro, the internal one as a function */
    #define Py_BUILD_CORE 1
    #include "internal/pycore_interp.h"
    #include "internal/pycore_runtime.h"
    #undef Py_BUILD_CORE
    #include <signal.h>
    #include <sys/epoll.h>
    #if PY_VERSION_HEX >= 0x030D0000
    #define Py_BUILD_CORE 1
    #include "internal/pycore_ceval.h"
    #undef Py_BUILD_CORE
    #endif

    /* A thread's sections; those of them that keep the collector away; whether it takes in messages. (Of glibc's room
       for libraries that are loaded late, so that a look is one instruction and not a call.) */
    static __thread struct { int depth, keeps_away, reading; } sk_mine
    #ifdef __GLIBC__
        __attribute__((tls_model("initial-exec")))
    #endif
    ;
    #define sk_depth sk_mine.depth
    #define sk_keeps_away sk_mine.keeps_away
    #define sk_reading sk_mine.reading
    /* Threads that keep the collector away. */
    static int sk_keepers;
    /* The collector's generations, and what is added to their thresholds, but to those that are out of reach anyway. (A
       number that nobody sets himself: who reads a threshold meanwhile, in another thread, may set it later.) */
    static struct gc_generation *sk_generations;
    #define SK_FAR 0x5A5A0000
    #define SK_REACH (1 << 24)
    static unsigned long sk_main_thread;

    /* Whether this thread leaves signals to others, and what it would take in otherwise. */
    static __thread int sk_deaf;
    static __thread sigset_t sk_heard;

    static inline int sk_is_main(void) { return PyThread_get_thread_ident() == sk_main_thread; }

    static inline void sk_collector_off(void) {
        sk_keepers++;
        for (int i = 0; i < NUM_GENERATIONS; i++)  /* also where others keep it away: a thread may have set it anew */
            if (sk_generations[i].threshold < SK_REACH)
                sk_generations[i].threshold += SK_FAR;
    }

    static inline void sk_collector_on(void) {
        if (--sk_keepers == 0)
            for (int i = 0; i < NUM_GENERATIONS; i++)
                if ((unsigned)(sk_generations[i].threshold - SK_FAR) < SK_REACH)
                    sk_generations[i].threshold -= SK_FAR;
    }

    static inline void sk_enter(void) {
        if (sk_keeps_away++ == 0)
            sk_collector_off();
        if (sk_depth++ == 0 && sk_is_main())
            _PyRuntime.main_thread = 0;
    }

    /* Whether handlers may run again now. */
    static inline int sk_leave(void) {
        if (--sk_keeps_away == 0)
            sk_collector_on();
        if (--sk_depth != 0 || !sk_is_main())
            return 0;
        _PyRuntime.main_thread = sk_main_thread;
        return 1;
    }

    /* Whether a handler waits for the main thread to run it. */
    static inline int sk_has_come(void) {
    #if PY_VERSION_HEX >= 0x030D0000
        return _Py_atomic_load_int_relaxed(&_PyRuntime.signals.is_tripped);
    #elif PY_VERSION_HEX >= 0x030C0000
        return _Py_atomic_load_relaxed(&_PyRuntime.signals.is_tripped);
    #else
        return _Py_atomic_load_relaxed(&_PyRuntime.ceval.signals_pending);
    #endif
    }

    /* Has the eval loop look for signals: it may have made up its mind while it was not to see them. */
    static inline void sk_have_it_look(void) {
        if (!sk_has_come())
            return;
    #if PY_VERSION_HEX >= 0x030D0000
        _Py_set_eval_breaker_bit(_PyRuntime.main_tstate, _PY_SIGNALS_PENDING_BIT);
    #elif PY_VERSION_HEX >= 0x030C0000
        _Py_atomic_store_relaxed(&_PyRuntime.ceval.signals_pending, 1);
        _Py_atomic_store_relaxed(&PyInterpreterState_Main()->ceval.eval_breaker, 1);
    #else
        _Py_atomic_store_relaxed(&PyInterpreterState_Main()->ceval.eval_breaker, 1);
    #endif
    }

    /* As sk_leave, where no handler may run yet: the eval loop runs it a little later. */
    static inline void sk_leave_quietly(void) {
        if (sk_leave())
            sk_have_it_look();
    }

    /* Sleeps in an epoll set; ended by a signal whose handler waits for this thread, also by one that came before. Gives
       how many are ready, or what went wrong as a negative number. */
    static int sk_sleep(int epoll, struct epoll_event *ready, int most, int milliseconds) {
        int found;
        if (sk_is_main()) {
            sigset_t all, before;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
            found = sk_has_come() ? 0 : epoll_pwait(epoll, ready, most, milliseconds, &before);
            int error = errno;
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            errno = error;
        } else {
            found = epoll_wait(epoll, ready, most, milliseconds);
        }
        return found >= 0 ? found : errno == EINTR ? 0 : -errno;
    }

    static inline int sk_let_collect(void) {
        int before = sk_keeps_away;
        if (before != 0)
            sk_collector_on();
        sk_keeps_away = 0;
        return before;
    }

    static inline void sk_keep_away(int before) {
        if (before != 0)
            sk_collector_off();
        sk_keeps_away = before;
    }

    static inline int sk_open(void) {
        int depth = sk_depth;
        if (depth == 0)
            return 0;
        sk_depth = 0;
        if (sk_is_main())
            _PyRuntime.main_thread = sk_main_thread;
        return depth | sk_let_collect() << 16;
    }

    static inline void sk_close(int before) {
        if (before == 0)
            return;
        sk_keep_away(before >> 16);
        sk_depth = before & 0xFFFF;
        if (sk_is_main())
            _PyRuntime.main_thread = 0;
    }

    /* Blocks what is sent to the process; not what a thread's own faults raise. */
    static void sk_deafen(void) {
        static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
        sigset_t all;
        sigfillset(&all);
        for (size_t i = 0; i < sizeof own / sizeof *own; i++)
            sigdelset(&all, own[i]);
        pthread_sigmask(SIG_BLOCK, &all, &sk_heard);
        sk_deaf = 1;
    }

    static int sk_hear(void) {
        int deaf = sk_deaf;
        if (deaf)
            pthread_sigmask(SIG_SETMASK, &sk_heard, NULL);
        sk_deaf = 0;
        return deaf;
    }

    static PyObject *sk_let_in(PyObject *module, PyObject *const *args, Py_ssize_t count) {
        PyObject *result = NULL;
        int before;
        if (count == 0) {
            PyErr_SetString(PyExc_TypeError, "let_in() takes what is to be called");
            return NULL;
        }
        before = sk_open();
        if (PyErr_CheckSignals() == 0)
            result = PyObject_Vectorcall(args[0], args + 1, count - 1, NULL);
        sk_close(before);
        return result;
    }

    static PyMethodDef sk_let_in_method = {
        "let_in", (PyCFunction)(void (*)(void))sk_let_in, METH_FASTCALL,
        "let_in($module, call, /, *args)\\n--\\n\\n"
        "`call(*args)`, which sleeps or runs code of the program's: handlers and the collector may run again.\\n\\n"
        "Not under a lock. Runs first the handlers of what has come: a sleep that begins after a signal is not ended by "
        "it."
    };

    static unsigned long sk_named_main(void) { return _PyRuntime.main_thread; }

    static int sk_threshold(int generation) { return PyInterpreterState_Main()->gc.generations[generation].threshold; }

    static void sk_begin(unsigned long thread) {
        sk_main_thread = thread;
        sk_generations = PyInterpreterState_Main()->gc.generations;
    }

    /* In the child of a fork, whose only thread is the one that forked: the others' sections are gone with them. */
    static void sk_forked(void) {
        sk_main_thread = PyThread_get_thread_ident();
        if (sk_keepers > 1 || (sk_keepers == 1 && sk_keeps_away == 0)) {
            sk_keepers = 1;
            sk_collector_on();
            if (sk_keeps_away != 0)
                sk_collector_off();
        }
        _PyRuntime.main_thread = sk_depth != 0 ? 0 : sk_main_thread;
    }
    """
    int sk_reading
    int sk_depth
    void sk_enter() noexcept
    int sk_leave() noexcept
    void sk_leave_quietly() noexcept
    int sk_has_come() noexcept
    void sk_have_it_look() noexcept
    bint sk_is_main() noexcept
    int sk_sleep(int epoll, epoll_event *ready, int most, int milliseconds) noexcept nogil
    int sk_open() noexcept
    void sk_close(int before) noexcept
    int sk_let_collect() noexcept
    void sk_keep_away(int before) noexcept
    void sk_deafen() noexcept
    int sk_hear() noexcept
    unsigned long sk_named_main() noexcept
    int sk_threshold(int generation) noexcept
    void sk_begin(unsigned long thread) noexcept
    void sk_forked() noexcept

    ctypedef struct PyMethodDef:
        pass
    PyMethodDef sk_let_in_method
    object PyCFunction_NewEx(PyMethodDef* method, object module, object name)

cdef object log = logging.getLogger("skate")


cpdef void enter_section() noexcept:
    """From here to `leave_section` neither handlers nor the collector run in this thread. Sections nest."""
    sk_enter()


cpdef int leave_section() except -1:
    """Ends a section. With the outermost, what was put off runs: raises what a handler raises."""
    if sk_leave():
        PyErr_CheckSignals()
    return 0


cdef void leave_quietly() noexcept:
    """As `leave_section` in a destructor, where what a handler raises would be lost: it runs a little later."""
    sk_leave_quietly()


cdef int let_collect() noexcept:
    """In a section, before the GIL is released: others may collect. Gives what `keep_away` takes, afterwards."""
    return sk_let_collect()


cdef void keep_away(int before) noexcept:
    sk_keep_away(before)


cpdef empty(int fd):
    """Takes all there is out of a pipe or eventfd that does not block. Other threads get no turn meanwhile."""
    cdef char buffer[4096]
    while c_read(fd, buffer, sizeof(buffer)) == sizeof(buffer):
        pass


#: see sk_let_in_method (in C, as every call of a task goes through it)
let_in = PyCFunction_NewEx(&sk_let_in_method, None, __name__)


cpdef bint interrupted():
    """Whether a handler waits for this thread to run it, once it may."""
    return sk_is_main() and sk_has_come() != 0


def run_handlers():
    """In a section, and not under a lock: runs the handlers that wait; raises what one of them raises."""
    cdef int before = sk_open()
    try:
        sk_have_it_look()
        _look()  # 3.11's eval loop keeps count of what it has not looked at, PyErr_CheckSignals does not
        PyErr_CheckSignals()
    finally:
        sk_close(before)


#: a call by the eval loop
_look = eval("lambda: None")

cdef enum:
    MOST_READY = 256


cpdef list doze(int epoll, timeout):
    """In a section: sleeps up to `timeout` seconds (None: for ever) in an epoll set; gives what is ready, as epoll.poll.

    The collector may run meanwhile. Handlers run later, but a signal ends the sleep, if its handler waits for this
    thread (`interrupted`).
    """
    cdef epoll_event ready[MOST_READY]
    cdef int found, before, i, milliseconds = -1
    if timeout is not None:
        milliseconds = <int>min(max(0.0, ceil(<double>timeout * 1e3)), 2e9)
    if milliseconds == 0:
        found = sk_sleep(epoll, ready, MOST_READY, 0)
    else:
        before = sk_let_collect()
        with nogil:
            found = sk_sleep(epoll, ready, MOST_READY, milliseconds)
        sk_keep_away(before)
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return [(ready[i].data.fd, ready[i].events) for i in range(found)]


def leave_signals():
    """From here on this thread takes in no signal that is sent to the process: they are for the program's own threads.

    A thread that does not block one that the others block, to wait for it with `signal.sigwait`, would get it, and the
    process end by it. What runs of the program's in this thread (`Steps.later`) has the signals that it had.
    """
    sk_deafen()


def with_signals(call):
    """`call()` with the signals that this thread had before `leave_signals`: what it starts has them, too."""
    cdef int deaf = sk_hear()
    try:
        return call()
    finally:
        if deaf:
            sk_deafen()


def sections():
    """In how many sections this thread is."""
    return sk_depth


cdef class Section:
    """A section as a context manager, for what takes no lock."""

    def __enter__(self):
        sk_enter()

    def __exit__(self, kind, value, traceback):
        leave_section()


#: the only one that is needed
section = Section()


cdef class Undisturbed:
    """`call(*args)` in a section, from its first moment: in Python a handler could raise before it has begun one."""

    def __cinit__(self, call):
        self._call = call

    def __call__(self, *args):
        sk_enter()
        try:
            return self._call(*args)
        finally:
            leave_section()


cdef class Steps:
    """A lock whose holder is in a section: `with steps:` is a step that nothing of the program's interrupts.

    `settle()` is called under the lock, before it is released, where something was dropped (`note_dropped`).
    """

    def __cinit__(self, settle=None):
        self._lock = PyThread_allocate_lock()
        if self._lock is NULL:
            raise MemoryError
        self._settle = settle
        self.dropped = deque()
        self._later = deque()
        self._spent = []

    def __dealloc__(self):
        if self._lock is not NULL:
            PyThread_free_lock(self._lock)

    cpdef enter(self):
        """Begins a step: blocks while another thread is in one."""
        cdef PyThread_type_lock lock = self._lock
        sk_enter()
        cdef int before
        if not PyThread_acquire_lock(lock, NOWAIT_LOCK):
            before = sk_let_collect()
            with nogil:
                PyThread_acquire_lock(lock, WAIT_LOCK)
            sk_keep_away(before)

    cpdef leave(self):
        """Ends a step; then calls what was put off, and raises what that or a handler of a signal raises."""
        try:
            self._release()
            if self._owes and sk_reading == 0:
                self._run_later()
        finally:
            leave_section()

    def __enter__(self):
        self.enter()

    def __exit__(self, kind, value, traceback):
        self.leave()

    def locked(self):
        """Whether a thread is in a step."""
        if not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            return True
        PyThread_release_lock(self._lock)
        return False

    cpdef later(self, call):
        """Calls `call()` once the lock is free. It may do anything, and handlers of signals wait until it is over."""
        self._later.append(call)
        self._owes = True

    cpdef drop_later(self, what):
        """Lets go of `what` once the lock is free: it may be the last reference to something with a finalizer."""
        self._spent.append(what)
        self._owes = True

    cpdef note_dropped(self, what):
        """Has `settle` deal with what was dropped: now, or by whoever holds the lock. From anywhere, also in a step."""
        self.dropped.append(what)
        if PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            sk_enter()
            try:
                self._release()
                if self._owes and sk_reading == 0:
                    self._run_later()
            finally:
                leave_quietly()

    cdef _release(self):
        """Releases the lock, after dealing with what was dropped meanwhile."""
        while True:
            try:
                if self.dropped:
                    self._settle()
            finally:
                PyThread_release_lock(self._lock)
            if not self.dropped or not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
                return  # whoever holds it now deals with them

    cpdef void begin_reading(self) noexcept:
        """This thread has the right to read from here on: what is called later waits for the end of that, too."""
        global sk_reading
        sk_enter()
        sk_reading += 1

    cpdef bint has_put_off(self):
        """Whether something is to be called, or let go of."""
        return self._owes  # (not whether anything is left: the thread that is at it sees to the rest)

    cpdef end_reading(self):
        """Ends what `begin_reading` began; then as `leave`."""
        global sk_reading
        sk_reading -= 1
        try:
            if self._owes and sk_reading == 0:
                self._run_later()
        finally:
            leave_section()

    cdef _run_later(self):
        """All of them are called, whatever one raises; the first exception goes on to the caller."""
        cdef int before = sk_let_collect()
        cdef int deaf = sk_hear()
        self._owes = False
        spent, self._spent = self._spent, []
        first = None
        try:
            while self._later:
                call = self._later.popleft()
                try:
                    call()
                except BaseException as error:
                    if first is None:
                        first = error
                    else:
                        log.exception("%r failed", call)
            call = None
            spent.clear()
        finally:
            if deaf:
                sk_deafen()
            sk_keep_away(before)
        if first is not None:
            try:
                raise first
            finally:
                first = None


def _check():
    """Raises ImportError where this Python is not as skate takes it to be."""
    main = sk_named_main()
    if who_patched_threads():  # `init` says so, and what is to be compared is not there
        sk_begin(main)
        return
    thresholds = tuple([sk_threshold(generation) for generation in range(3)])
    if threading.main_thread().ident != main or thresholds != gc.get_threshold():
        raise ImportError(f"skate needs CPython 3.11 to 3.13, and was not built for this one: {sys.version}")
    sk_begin(main)
    if threading.get_ident() == main and _is_interrupted():
        raise ImportError(f"skate cannot hold back handlers of signals in this Python: {sys.version}")


def _is_interrupted():
    """Whether this, the main thread, would run handlers of signals in a section."""
    sk_enter()
    try:
        signal.signal(signal.SIGINT, None)
    except ValueError:
        return False  # "signal only works in main thread": so it does not run them
    except TypeError:
        return True
    finally:
        sk_leave()


def _forked():
    sk_forked()


_check()
os.register_at_fork(after_in_child=_forked)

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
* Where a signal is pending, the eval loop of 3.11 and 3.12 looks only if `ceval.eval_breaker` says so, which a switch of
  threads in a section clears: it is set again. (From 3.13 on it is not cleared.)
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

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)

cdef extern from *:
    """
    #undef _PyGC_FINALIZED  /* Python 3.12's header defines it as a macro, the internal one as a function */
    #define Py_BUILD_CORE 1
    #include "internal/pycore_interp.h"
    #include "internal/pycore_runtime.h"
    #undef Py_BUILD_CORE

    /* A thread's sections; those of them that keep the collector away; whether it takes in messages. */
    static __thread int sk_depth, sk_keeps_away, sk_reading;
    /* Threads that keep the collector away. */
    static int sk_keepers;
    /* The collector's generations, and what is added to their thresholds: more than anybody sets. */
    static struct gc_generation *sk_generations;
    #define SK_FAR (1 << 30)
    static unsigned long sk_main_thread;

    static inline int sk_is_main(void) { return PyThread_get_thread_ident() == sk_main_thread; }

    static inline void sk_collector_off(void) {
        if (sk_keepers++ == 0)
            for (int i = 0; i < NUM_GENERATIONS; i++)
                if (sk_generations[i].threshold < SK_FAR)
                    sk_generations[i].threshold += SK_FAR;
    }

    static inline void sk_collector_on(void) {
        if (--sk_keepers == 0)
            for (int i = 0; i < NUM_GENERATIONS; i++)
                if (sk_generations[i].threshold >= SK_FAR)  /* else another thread has just set it */
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

    /* As sk_leave, where no handler may run yet: the eval loop runs it a little later. */
    static inline void sk_leave_quietly(void) {
        if (!sk_leave())
            return;
    #if PY_VERSION_HEX < 0x030D0000  /* it may have made up its mind anew while it was not to see the signal */
        if (_Py_atomic_load_relaxed(&_PyRuntime.ceval.signals_pending))
            _Py_atomic_store_relaxed(&PyInterpreterState_Main()->ceval.eval_breaker, 1);
    #endif
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
    int sk_open() noexcept
    void sk_close(int before) noexcept
    int sk_let_collect() noexcept
    void sk_keep_away(int before) noexcept
    unsigned long sk_named_main() noexcept
    int sk_threshold(int generation) noexcept
    void sk_begin(unsigned long thread) noexcept
    void sk_forked() noexcept

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


def let_in(call, *args, **kwargs):
    """`call(*args, **kwargs)`, which sleeps or runs code of the program's: handlers and the collector may run again.

    Not under a lock. Runs first the handlers of what has come: a sleep that begins after a signal is not ended by it.
    """
    cdef int before = sk_open()
    try:
        PyErr_CheckSignals()
        return call(*args, **kwargs)
    finally:
        sk_close(before)


def sections():
    """In how many sections this thread is."""
    return sk_depth


class Section:
    """A section as a context manager, for what takes no lock."""

    __slots__ = ()

    def __enter__(self):
        sk_enter()

    def __exit__(self, *_):
        leave_section()


#: the only one that is needed
section = Section()


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
        if not PyThread_acquire_lock(lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(lock, WAIT_LOCK)

    cpdef leave(self):
        """Ends a step; then calls what was put off, and raises what that or a handler of a signal raises."""
        try:
            self._release()
            if sk_reading == 0 and (self._later or self._spent):
                self._run_later()
        finally:
            leave_section()

    def __enter__(self):
        self.enter()

    def __exit__(self, *_):
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

    cpdef drop_later(self, what):
        """Lets go of `what` once the lock is free: it may be the last reference to something with a finalizer."""
        self._spent.append(what)

    cpdef note_dropped(self, what):
        """Has `settle` deal with what was dropped: now, or by whoever holds the lock. From anywhere, also in a step."""
        self.dropped.append(what)
        if PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            sk_enter()
            try:
                self._release()
                if sk_reading == 0 and (self._later or self._spent):
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
        """This thread takes in messages: what is called later waits for the end of that, too."""
        global sk_reading
        sk_enter()
        sk_reading += 1

    cpdef end_reading(self):
        """Ends what `begin_reading` began; then as `leave`."""
        global sk_reading
        sk_reading -= 1
        try:
            if sk_reading == 0 and (self._later or self._spent):
                self._run_later()
        finally:
            leave_section()

    cdef _run_later(self):
        """All of them are called, whatever one raises; the first exception goes on to the caller."""
        cdef int before = sk_let_collect()
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
            sk_keep_away(before)
        if first is not None:
            try:
                raise first
            finally:
                first = None


def _check():
    """Raises ImportError where this Python is not as skate takes it to be."""
    main = threading.main_thread().ident
    thresholds = tuple([sk_threshold(generation) for generation in range(3)])
    if sk_named_main() != main or thresholds != gc.get_threshold():
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

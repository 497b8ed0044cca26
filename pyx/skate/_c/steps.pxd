# steps: the sections in which neither a signal handler nor the garbage collector may run, and the lock made of them.
#
# A thread's sections nest. While it is in one
#   * no Python handler of a signal runs in it: what came meanwhile runs when the outermost section ends;
#   * the collector starts nowhere in the process, so no finalizer runs because something was allocated.
# Both are put off, never lost. `let_in` lets them in again, for a call that sleeps or runs code of the program's.

from cpython.pythread cimport PyThread_type_lock

cpdef void enter_section() noexcept
cpdef int leave_section() except -1
cdef void leave_quietly() noexcept
cdef int let_collect() noexcept
cdef void keep_away(int before) noexcept

cpdef list doze(int epoll, timeout)
cpdef empty(int fd)
cpdef bint interrupted()

cdef class Undisturbed:
    cdef object _call

cdef class Steps:
    cdef PyThread_type_lock _lock
    cdef object _settle                 # called under the lock, before it is released, where something was dropped
    cdef readonly object dropped        # a deque: what nobody holds any more, and the lock's holder has not dealt with
    cdef object _later                  # a deque: what is to be called once the lock is free
    cdef list _spent                    # what may hold the last reference to something of the program's
    cdef bint _owes                     # there is something in these two
    cpdef enter(self)
    cpdef leave(self)
    cpdef later(self, call)
    cpdef drop_later(self, what)
    cpdef note_dropped(self, what)
    cpdef void begin_reading(self) noexcept
    cpdef bint has_put_off(self)
    cpdef end_reading(self)
    cdef _release(self)
    cdef _run_later(self)

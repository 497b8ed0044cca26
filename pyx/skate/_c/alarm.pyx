"""An alarm that threads set for one that sleeps: to put it off costs a system call, and wakes nobody.

State: a timer of the kernel's (timerfd).
"""

import os

from libc.errno cimport EINTR, errno
from libc.math cimport ceil
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, itimerspec
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read

from skate._c.steps cimport keep_away, let_collect

cdef extern from "poll.h" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* watched, unsigned long number, int milliseconds)
    enum:
        POLLIN

cdef extern from "sys/timerfd.h" nogil:
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, itimerspec* before)
    int TFD_CLOEXEC


cdef class Alarm:
    """Not set at first: whoever sleeps on it does so until somebody sets it."""

    def __cinit__(self):
        self._timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)
        if self._timer < 0:
            raise OSError(errno, f"no timer can be had: {os.strerror(errno)}")

    def __dealloc__(self):
        self.close()

    cpdef close(self):
        """It is of no use any more, and nobody sleeps on it."""
        if self._timer >= 0:
            c_close(self._timer)
            self._timer = -1

    cpdef set(self, double seconds):
        """It goes off so many seconds from now. From any thread; what it was set to before does not count."""
        self.is_set = True
        self._settle(max(seconds, 1e-9))

    cpdef clear(self):
        """It does not go off. From any thread."""
        self.is_set = False
        self._settle(0)

    def sleep(self):
        """Sleeps until it goes off. By one thread only; the collector may run meanwhile, handlers of signals do not."""
        cdef uint64_t times
        cdef int before = let_collect()
        with nogil:
            while c_read(self._timer, &times, sizeof(times)) < 0 and errno == EINTR:
                pass
        keep_away(before)
        self.is_set = False

    def stand_by(self, int epoll, timeout, double patience):
        """Sleeps until an epoll set has been readable for `patience` seconds, up to `timeout` seconds (None: for ever).

        Ends, too, when it goes off. Needs the GIL for none of it: whoever deals in time with what comes is not
        disturbed.
        """
        cdef pollfd watched[2]
        cdef int before, milliseconds = -1, patient = max(1, <int>(patience * 1e3)), found
        cdef uint64_t times
        if timeout is not None:
            milliseconds = <int>min(max(0.0, ceil(<double>timeout * 1e3)), 2e9)
        watched[0].fd, watched[1].fd = epoll, self._timer
        watched[0].events = watched[1].events = POLLIN
        before = let_collect()
        with nogil:
            found = poll(watched, 2, milliseconds)
            if found > 0 and not watched[1].revents:
                found = poll(&watched[1], 1, patient)
            if found > 0 and watched[1].revents:
                c_read(self._timer, &times, sizeof(times))
        keep_away(before)
        if found > 0 and watched[1].revents:
            self.is_set = False

    cdef _settle(self, double seconds):
        cdef itimerspec value
        value.it_interval.tv_sec = value.it_interval.tv_nsec = 0
        value.it_value.tv_sec = <long>seconds
        value.it_value.tv_nsec = <long>((seconds - value.it_value.tv_sec) * 1e9)
        if self._timer >= 0 and timerfd_settime(self._timer, 0, &value, NULL) < 0:
            raise OSError(errno, f"the alarm cannot be set: {os.strerror(errno)}")

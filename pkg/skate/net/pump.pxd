# What Cython is told of pump.py's classes where that is compiled: their attributes become C fields.

from skate._c cimport clock
from skate._c cimport steps as sections
from skate._c.alarm cimport Alarm
from skate._c.refs cimport Waiter
from skate._c.steps cimport Steps
from skate.net.mailbox cimport Mailbox

cdef class Pump:
    cdef public Mailbox _mailbox
    cdef public Steps _steps
    cdef public object _before_sleep, _reading, _thread, sleepers
    cdef public Alarm _alarm
    cdef public bint _pump_reads, _ousted, _closed, _ending, _rung, _standing_by
    cdef public Py_ssize_t _wanted
    cdef public unsigned long _reader
    cdef public double last_read
    cpdef bint stands_in(self) except -1
    cpdef bint may_sleep_on(self) except -1
    cpdef glance(self, double now, double interval)
    cpdef bint wait(self, Waiter waiter, Steps lock, deadline) except -1
    cpdef bint _wait(self, Waiter waiter, Steps lock, deadline) except -1
    cpdef _read_until(self, Waiter waiter, deadline)
    cpdef _read_on(self, Waiter waiter, deadline)
    cpdef _begin_reading(self)
    cpdef _leave(self)
    cpdef _read_now(self)

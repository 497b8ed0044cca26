# What Cython is told of actor.py's classes where that is compiled: their attributes become C fields.

from skate._c cimport clock
from skate.net.mailbox cimport Mailbox
from skate.net.pump cimport Pump
from skate.runtime.runtime cimport Runtime
from skate.worker.executor cimport Executor, Pushed

cdef class EventLoop:
    cdef public Executor _executor
    cdef public Runtime _runtime
    cdef public object _loop, thread, _context, _arrived, _ended, _waiting
    cdef public Py_ssize_t _free
    cdef public dict _tasks
    cdef public bint _ringing
    cpdef bint _start_calls(self)
    cpdef _start(self, Pushed pushed)

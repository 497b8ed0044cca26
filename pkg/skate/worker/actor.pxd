# What Cython is told of actor.py's classes where that is compiled: their attributes become C fields.

from skate._c cimport clock
from skate.net.mailbox cimport Mailbox
from skate.net.pump cimport Pump
from skate.runtime.runtime cimport Runtime
from skate.worker.executor cimport Executor, Pushed

cdef class Group:
    cdef public Py_ssize_t free
    cdef public object waiting

cdef class EventLoop:
    cdef public Executor _executor
    cdef public Runtime _runtime
    cdef public object _actor, _loop, _thread, _context, _group_of, _arrived, _ended
    cdef public dict _groups, _tasks
    cdef public set _warned
    cdef public bint _ringing
    cpdef bint _start_calls(self)
    cpdef _start(self, Group group, Pushed pushed)

# What Cython is told of runtime.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c cimport clock
from skate._c.steps cimport Steps
from skate.core.dispatch cimport Dispatcher
from skate.core.references cimport References
from skate.net.mailbox cimport Mailbox
from skate.net.pump cimport Pump

cdef class Step:
    cdef public Runtime _runtime

cdef class Runtime:
    cdef public bytes me, node
    cdef public Steps lock
    cdef public object step, store, next_task_id, broken, captured, objects, actors, streams, submission, groups, copies
    cdef public bint closed, ending, in_cluster
    cdef public Py_ssize_t depth
    cdef public object _next_token
    cdef public list _handlers, effects, when_gone
    cdef public dict _carriers, _queries
    cdef public References references
    cdef public Dispatcher dispatcher
    cdef public Mailbox mailbox
    cdef public Pump pump
    cpdef double begin(self) except? -1.0
    @cython.locals(todo=list, done=Py_ssize_t)
    cpdef act(self)
    cpdef send_soon(self, double now)
    cpdef glance(self, double now)
    cpdef before_sleep(self)
    cpdef _next_tick(self)

# What Cython is told of objects.py's classes where that is compiled: their attributes become C fields.

from skate._c cimport refs
from skate._c.refs cimport ObjectEntry, ObjectRef, Waiter
from skate.core.references cimport References
from skate.runtime.runtime cimport Runtime

cdef class Objects:
    cdef public Runtime _runtime
    cdef public object large_arguments, before_blocking, blocking, loops, _arrivals
    cdef public References _references
    cdef public dict _askers, _echo_waits, when_freed
    cdef public Py_ssize_t _echoes_asked
    cpdef bint block(self, Waiter waiter, timeout) except -1
    cpdef bint wait_for(self, Waiter waiter, deadline) except -1
    cpdef value(self, ObjectEntry entry, bint block=*, deadline=*, run=*)
    cpdef settle(self, ObjectEntry entry, int state, value, contents=*)
    cpdef _load(self, ObjectEntry entry, bint block, deadline)

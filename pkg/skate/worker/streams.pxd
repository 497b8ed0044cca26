# What Cython is told of streams.py's classes where that is compiled: their attributes become C fields.

from skate.core.streams cimport Outgoing
from skate.runtime.runtime cimport Runtime
from skate.worker.executor cimport Executor, Pushed

cdef class Streams:
    cdef public Executor _executor
    cdef public Runtime _runtime
    cdef public dict _outgoing, _on_word
    cpdef bint _send(self, Pushed pushed, str name, Outgoing stream, value) except -1

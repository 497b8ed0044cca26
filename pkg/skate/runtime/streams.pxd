# What Cython is told of streams.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c.refs cimport ObjectRef as Ref
from skate.core.streams cimport Stream
from skate.core.tasks cimport OwnedTask
from skate.runtime.objects cimport Objects
from skate.runtime.runtime cimport Runtime

cdef class Streams:
    cdef public Runtime _runtime
    @cython.locals(task=OwnedTask, stream=Stream)
    cpdef item(self, worker, task_id, Py_ssize_t index, int state, value, contents)
    @cython.locals(task=OwnedTask, tasks=dict)
    cpdef OwnedTask _run_by(self, worker, task_id)
    @cython.locals(ref=Ref, objects=Objects)
    cpdef _append(self, Stream stream, int state, value, contents)
    cpdef peek(self, Stream stream)
    cpdef _take(self, Stream stream)
    cpdef next_ref(self, Stream stream)
    @cython.locals(task=OwnedTask, tasks=dict)
    cpdef _lease_of(self, Stream stream)

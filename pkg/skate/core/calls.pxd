# What Cython is told of calls.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate.core.machine cimport Machine
from skate.core.tasks cimport OwnedTask

cdef class ActorLine:
    cdef object __weakref__
    cdef public bytes actor
    cdef public bint ordered, counts, watched
    cdef public Py_ssize_t max_pending
    cdef public int state
    cdef public object cause, waiting
    cdef public Life life
    cdef public str class_name, name

cdef class Life:
    cdef public object worker
    cdef public dict in_flight
    cdef public set coming
    cdef public bint closed

cdef class Calls(Machine):
    cdef public object lines, _late
    cpdef Life call_submitted(self, ActorLine line, OwnedTask call, bint ready)
    cpdef next_tick(self)
    @cython.locals(line=ActorLine)
    cpdef call_done(self, Life life, OwnedTask call)

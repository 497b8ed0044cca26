# What Cython is told of references.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c.refs cimport Guard, ObjectEntry
from skate.core.machine cimport Machine

cdef class References(Machine):
    cdef public bytes me, _node
    cdef public object home
    cdef public dict entries, _dead
    cdef public set _watched
    @cython.locals(entry=ObjectEntry)
    cpdef ObjectEntry create(self, bytes object_id)
    @cython.locals(entry=ObjectEntry)
    cpdef pin(self, entries)
    @cython.locals(entry=ObjectEntry)
    cpdef unpin(self, entries)

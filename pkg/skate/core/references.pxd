# What Cython is told of references.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c.refs cimport Guard, ObjectEntry
from skate.core.machine cimport Machine

cdef class References(Machine):
    cdef public bytes me, _node
    cdef public object home
    cdef public dict entries, _dead, _estates, _told, _echoes
    cdef public set _watched, _unsettled
    cdef public list _asked_to_speak
    @cython.locals(entry=ObjectEntry)
    cpdef ObjectEntry create(self, bytes object_id)
    @cython.locals(entry=ObjectEntry)
    cpdef pin(self, entries)
    @cython.locals(entry=ObjectEntry)
    cpdef unpin(self, entries)

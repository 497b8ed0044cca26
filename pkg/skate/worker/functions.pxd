# What Cython is told of functions.py's classes where that is compiled: their attributes become C fields.

from skate._c.steps cimport Steps

cdef class Loaded:
    cdef public list owners
    cdef public str name
    cdef public object pickled, call, calls

cdef class Functions:
    cdef public Steps _lock
    cdef public dict by_id
    cdef list _unowned

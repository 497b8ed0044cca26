# What Cython is told of streams.py's classes where that is compiled: their attributes become C fields.

cdef class Stream:
    cdef public bytes task
    cdef public Py_ssize_t limit, received, read
    cdef public object refs, expected
    cdef public bint ended, abandoned, gathers
    cpdef bint accepts(self, Py_ssize_t number) except -1
    cpdef on_value(self, ref)
    cpdef on_taken(self)

cdef class Outgoing:
    cdef public Py_ssize_t limit, yielded, read, skipped
    cdef public bint known, abandoned
    cpdef on_yielded(self)

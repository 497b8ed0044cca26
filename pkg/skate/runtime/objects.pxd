# What Cython is told of objects.py's classes where that is compiled: their attributes become C fields.

from skate._c.refs cimport ObjectEntry
from skate.core.references cimport References

cdef class Objects:
    cdef public object _runtime, large_arguments, before_blocking, blocking
    cdef public References _references
    cdef public dict _callbacks, when_freed
    cpdef value(self, ObjectEntry entry, bint block=*)
    cpdef _load(self, ObjectEntry entry, bint block)

# What Cython is told of testament.py's classes where that is compiled: their attributes become C fields.

cdef class Testament:
    cdef public object _memory
    cdef public Py_ssize_t _half
    cdef public list _used
    cpdef begins(self, bytes task)


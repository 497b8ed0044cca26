# What Cython is told of tasks.py's classes where that is compiled: their attributes become C fields.

cdef class Function:
    cdef public bytes id
    cdef public str name
    cdef public object pickled, refs, seconds, calls
    cdef object __weakref__
    cpdef measured(self, double seconds)

cdef class OwnedTask:
    cdef public bytes id, args
    cdef public Function function
    cdef public object queue, options, dependencies, nested, returns, lease, retries_left, stream, waiter
    cdef public int state, attempt
    cdef public double expected
    cdef public bint blamed
    cdef public str name
    cpdef bint may_retry(self)

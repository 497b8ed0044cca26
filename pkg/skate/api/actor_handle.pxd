# What Cython is told of actor_handle.py's classes where that is compiled: their attributes become C fields.

from skate.core.calls cimport ActorLine
from skate.core.tasks cimport Function
from skate.runtime.runtime cimport Runtime
from skate.runtime.submission cimport Submission

cdef class ActorMethod:
    cdef public bytes _actor
    cdef public object _token, _type, _method, _chosen, _call, _takes, _pinned, _returns
    cdef public str _name
    cdef public Function _function
    cdef public Runtime _runtime
    cdef public ActorLine _line
    cdef object __weakref__

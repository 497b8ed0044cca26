# What Cython is told of machine.py's classes where that is compiled: their attributes become C fields.

cdef class Machine:
    cdef public list _effects

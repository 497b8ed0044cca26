cpdef double monotonic() except? -1.0
cpdef long long monotonic_ns() except? -1

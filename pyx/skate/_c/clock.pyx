# clock: what time it is, for modules on the way of a call, where asking `time` for it is a tenth of what they cost.
#
# State: what stands for the clock of the machine, in a simulation.

from cpython cimport time

cdef object _stand_in = None


cpdef double monotonic() except? -1.0:
    """As time.monotonic()."""
    if _stand_in is not None:
        return _stand_in.monotonic()
    return time.monotonic()


cpdef long long monotonic_ns() except? -1:
    """As time.monotonic_ns()."""
    if _stand_in is not None:
        return _stand_in.monotonic_ns()
    return time.monotonic_ns()


def replace(stand_in):
    """From now on `stand_in` is asked, which has these methods; None: the machine's clock. For simulations."""
    global _stand_in
    _stand_in = stand_in

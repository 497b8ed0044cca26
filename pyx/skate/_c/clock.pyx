# clock: what time it is, and pauses, by the machine's clock whatever a program has put in the place of `time`'s
# functions (tests freeze them). Asking `time` would be a tenth of what the modules on the way of a call cost, too.
#
# State: what stands for the clock of the machine, in a simulation.

from cpython cimport time
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, nanosleep, timespec

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


def thread_time():
    """As time.thread_time(): the CPU seconds of this thread, in a simulation too."""
    cdef timespec spent
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent)
    return spent.tv_sec + spent.tv_nsec * 1e-9


def sleep(double seconds):
    """Blocks for so long, of the machine's time even in a simulation; or until a signal comes."""
    cdef timespec pause
    pause.tv_sec = <long>seconds
    pause.tv_nsec = <long>((seconds - pause.tv_sec) * 1e9)
    with nogil:
        nanosleep(&pause, NULL)


def replace(stand_in):
    """From now on `stand_in` is asked, which has the methods `monotonic` and `monotonic_ns`; None: the machine's clock. For simulations."""
    global _stand_in
    _stand_in = stand_in

"""`multiprocessing.Pool` on actors: `from skate.util.multiprocessing import Pool`."""

from multiprocessing import TimeoutError

from skate.util.multiprocessing.pool import Pool

__all__ = ["Pool", "TimeoutError"]

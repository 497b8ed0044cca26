"""A generator's items arrive as it yields them, long before it ends: each is a ref of its own.

With back-pressure, a fast generator never gets far ahead of who reads it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import skate


@skate.remote
def blocks(count: int) -> Iterator[np.ndarray]:
    """As a file that is read block by block: 8 MB each, and only those that are wanted are in memory."""
    for i in range(count):
        yield np.full(1_000_000, i)


@skate.remote
def slowly() -> Iterator[str]:
    yield "first"
    time.sleep(1)
    yield "second"


@skate.remote
def fails() -> Iterator[int]:
    yield 1
    yield 2
    raise LookupError("the third is missing")


@skate.remote
class Source:
    def __init__(self) -> None:
        self.made = 0

    async def numbers(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            self.made += 1
            yield i

    async def how_many(self) -> int:
        return self.made


async def read(source: Source) -> list[int]:
    return [await ref async for ref in source.numbers.remote(5)]


if __name__ == "__main__":
    skate.init(num_cpus=2)

    print("the sum of 20 blocks:", sum(int(skate.get(ref)[0]) for ref in blocks.remote(20)))

    start = time.perf_counter()
    generator = slowly.remote()
    print("item:", skate.get(next(generator)), "- there before the second:", time.perf_counter() - start < 1)
    print("item:", skate.get(next(generator)))
    print("no more:", next(generator, None))

    for ref in fails.remote():
        try:
            print("got", skate.get(ref))
        except LookupError as error:
            print("in the middle:", str(error).splitlines()[-1])

    source = Source.remote()
    print("async for:", asyncio.run(read(source)))

    numbers = source.numbers.options(_generator_backpressure_num_objects=2).remote(1_000)
    first = [skate.get(next(numbers)) for _ in range(3)]
    print("held back:", first, "read, made fewer than 20:", skate.get(source.how_many.remote()) < 20)

    skate.shutdown()

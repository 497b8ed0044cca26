"""More than one call at a time in one actor: coroutines in its event loop, or threads.

Groups of methods have limits of their own, so that one kind of call never holds up another.
"""

import asyncio
import threading
import time

import skate


@skate.remote
class Crawler:
    """One `async def` makes an actor async: up to 1,000 calls at once, or `max_concurrency`."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def fetch(self, page: int) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.2)  # the network
        self.running -= 1
        return f"page {page}"

    async def most_at_once(self) -> int:
        return self.most

    async def fetch_all(self, refs: list) -> int:
        """Inside, refs are awaited; a blocking get would stop the loop."""
        return sum(map(len, await asyncio.gather(*refs)))


@skate.remote
class Files:
    """No `async def`: with `max_concurrency`, calls run in threads."""

    def __init__(self) -> None:
        self.together = threading.Barrier(3)

    def read(self, number: int) -> int:
        self.together.wait(timeout=30)  # only three at once get past
        return number


@skate.remote(concurrency_groups={"io": 2, "compute": 4})
class Server:
    """Long downloads never keep a health check waiting: it has a group of its own."""

    @skate.method(concurrency_group="io")
    async def download(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "downloaded"

    @skate.method(concurrency_group="compute")
    async def compute(self) -> str:
        return "computed"

    async def health(self) -> str:
        return "healthy"


@skate.remote
def text(words: int) -> str:
    return "word " * words


if __name__ == "__main__":
    skate.init(num_cpus=2)

    crawler = Crawler.remote()
    start = time.perf_counter()
    pages = skate.get([crawler.fetch.remote(page) for page in range(100)])
    took = time.perf_counter() - start
    print(f"{len(pages)} pages at 0.2 s each, all at once: {took < 10}")
    print("at once:", skate.get(crawler.most_at_once.remote()))

    polite = Crawler.options(max_concurrency=2).remote()
    skate.get([polite.fetch.remote(page) for page in range(4)])
    print("at once, with max_concurrency=2:", skate.get(polite.most_at_once.remote()))

    print("awaited inside:", skate.get(crawler.fetch_all.remote([text.remote(n) for n in range(4)])))

    files = Files.options(max_concurrency=3).remote()
    print("in three threads:", skate.get([files.read.remote(i) for i in range(3)]))

    server = Server.remote()
    downloads = [server.download.remote(0.5) for _ in range(4)]
    print("meanwhile:", skate.get([server.health.remote(), server.compute.remote()]))
    print("still downloading:", len(skate.wait(downloads, num_returns=4, timeout=0)[1]))
    urgent = server.health.options(concurrency_group="compute").remote()
    print("in another group, for this once:", skate.get(urgent))
    skate.get(downloads)

    skate.shutdown()

"""A reference can be awaited, like any future: tasks fit into an asyncio program, beside sockets and timers.

`async def` functions are no tasks. Where a task is to run one, it starts a loop of its own.
"""

import asyncio
import time

import skate


@skate.remote
def work(name: str, seconds: float) -> str:
    time.sleep(seconds)
    return name


async def fetch(page: int) -> str:
    await asyncio.sleep(0.1)
    return f"page {page}"


@skate.remote
def fetch_all(pages: int) -> list[str]:
    async def gather() -> list[str]:
        return await asyncio.gather(*(fetch(page) for page in range(pages)))

    return asyncio.run(gather())


async def heartbeat(beats: list[float]) -> None:
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.02)


async def main() -> None:
    beats: list[float] = []
    heart = asyncio.create_task(heartbeat(beats))

    print("await:", await work.remote("one", 0.1))
    print("gather:", await asyncio.gather(work.remote("slow", 0.3), work.remote("fast", 0.0)))

    done, pending = await asyncio.wait(
        [
            asyncio.wrap_future(work.remote(name, seconds).future())
            for name, seconds in (("a", 0.0), ("b", 0.5))
        ],
        return_when=asyncio.FIRST_COMPLETED,
    )
    print(f"wait: {len(done)} done, {len(pending)} pending")
    await asyncio.wait(pending)

    try:
        await asyncio.wait_for(asyncio.wrap_future(work.remote("never", 1.0).future()), timeout=0.1)
    except TimeoutError:
        print("wait_for: timed out")

    heart.cancel()
    print("meanwhile the loop went on:", len(beats) > 10)


if __name__ == "__main__":
    skate.init(num_cpus=2)
    asyncio.run(main())
    print("async code in a task:", skate.get(fetch_all.remote(3)))
    skate.shutdown()

"""Tasks that need the results of other tasks: pass the reference, and the graph runs itself.

A task starts when all references among its arguments have values, and it sees the values. Nothing waits here
until the end, and only the last results come back to this process.

    count("ham") ──┐
    count("egg") ──┼─▶ merge ──▶ rank
    count("pea") ──┘
"""

from collections import Counter

import skate

TEXTS = {
    "ham": "to be or not to be that is the question",
    "egg": "the quick brown fox jumps over the lazy dog and the cat",
    "pea": "if it is to be it is up to me",
}


@skate.remote
def count(text: str) -> Counter[str]:
    return Counter(text.split())


@skate.remote
def merge(*counts: Counter[str]) -> Counter[str]:
    return sum(counts, Counter())


@skate.remote
def rank(counts: Counter[str], top: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]


if __name__ == "__main__":
    skate.init()

    counts = [count.remote(text) for text in TEXTS.values()]
    merged = merge.remote(*counts)
    # One result may be used many times, by position or by name.
    first, top = rank.remote(merged, 1), rank.remote(merged, top=4)

    print("the first:", skate.get(first))
    print("the first four:", skate.get(top))

    skate.shutdown()

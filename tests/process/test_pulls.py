"""Large objects that programs on different nodes read from one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api.rendezvous import eventually
from skate.cluster_utils import Cluster, ClusterNode

from .clusters import Program, rows

pytestmark = pytest.mark.timeout(120)

MB = 1 << 20

READER = """
import numpy as np
def data(nbytes, seed=1):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
def used():
    return current.runtime.store.usage()["used"]
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield made
    made.shutdown()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[ClusterNode, str], Program]]:
    """Starts programs that can give things to one another."""
    started: list[Program] = []

    def start(node: ClusterNode, text: str) -> Program:
        started.append(Program(node, tmp_path, READER + text))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.mark.parametrize("nbytes", [MB, 50 * MB])
def test_an_array_is_read_on_another_node(cluster: Cluster, program: Callable, nbytes: int) -> None:
    other = cluster.add_node()
    owner = program(
        cluster.head_node, f"ref = skate.put(data({nbytes}))\ngive('ref', ref)\nsay('put')\ninput()"
    )
    reader = program(
        other,
        "ref = take('ref')\n"
        "first = skate.get(ref)\n"
        f"say(np.array_equal(first, data({nbytes})))\n"
        "second = skate.get(ref)\n"
        "say(np.shares_memory(first, second), first.flags.writeable)\n"
        f"say(used() >= {nbytes})\n"
        "del first, second, ref\n"
        "while used(): time.sleep(0.005)\n"
        "say('freed')\n",
    )
    assert owner.line() == "put"
    assert [reader.line() for _ in range(3)] == ["True", "True False", "True"]
    owner.go_on()
    assert reader.line() == "freed"  # the owner is gone


def test_the_owner_frees_all_copies(cluster: Cluster, program: Callable) -> None:
    others = [cluster.add_node() for _ in range(3)]
    owner = program(
        cluster.head_node,
        "before = used()\n"
        f"ref = skate.put(data({20 * MB}))\ngive('ref', ref)\nsay('put')\ninput()\n"
        "del ref\nwhile used() > before: time.sleep(0.005)\nsay('freed')\ninput()",
    )
    assert owner.line() == "put"
    readers = [
        program(
            other,
            "before = used()\nref = take('ref')\n"
            f"say(np.array_equal(skate.get(ref), data({20 * MB})))\n"
            f"say(used() - before >= {20 * MB})\n"
            "input()\ndel ref\nwhile used() > before: time.sleep(0.005)\nsay('freed')\ninput()",
        )
        for other in others
    ]
    assert [[reader.line(), reader.line()] for reader in readers] == [["True", "True"]] * 3
    for each in (*readers, owner):
        each.go_on()
    assert [each.line() for each in (*readers, owner)] == ["freed"] * 4


def test_many_readers_share_one_pull(cluster: Cluster, program: Callable) -> None:
    other = cluster.add_node(num_cpus=2)
    program(cluster.head_node, f"ref = skate.put(data({30 * MB}))\ngive('ref', ref)\ninput()")
    reader = program(
        other,
        "@skate.remote(num_cpus=0)\nclass Reader:\n"
        "    def read(self, refs): array = skate.get(refs[0]); return int(array[::4096].sum())\n"
        "readers = [Reader.remote() for _ in range(4)]\n"
        "ref = take('ref')\n"
        "sums = skate.get([each.read.remote([ref]) for each in readers])\n"
        f"say(sums == [int(data({30 * MB})[::4096].sum())] * 4)\n"
        f"say(used() < {40 * MB})\ninput()",
    )
    assert [reader.line(), reader.line()] == ["True", "True"]


def test_what_was_half_made_here_is_in_nobodys_way(cluster: Cluster, program: Callable) -> None:
    """A task's first attempt died on the reader's node while it stored its result; another one's counts."""
    other = cluster.add_node()
    program(cluster.head_node, f"ref = skate.put(data({5 * MB}))\ngive('ref', ref)\ninput()")
    reader = program(
        other,
        "from skate.ids import owner_of\n"
        "ref = take('ref')\n"
        "half_made = current.runtime.store._arena.allocate(ref.binary(), 1000, owner_of(ref.binary()))\n"
        f"say(np.array_equal(skate.get(ref), data({5 * MB})))\n"
        "input()",
    )
    assert reader.line() == "True"


def test_an_actor_s_results_and_arguments_cross(cluster: Cluster, program: Callable) -> None:
    other = cluster.add_node()
    program(
        cluster.head_node,
        "@skate.remote\nclass Echo:\n"
        "    def twice(self, array): return array * 2\n"
        "    def used(self): return used()\n"
        "    def stream(self):\n"
        "        for seed in range(3): yield np.full(300_000, seed)\n"
        "echo = Echo.remote()\ngive('echo', echo)\ninput()",
    )
    caller = program(
        other,
        "echo = take('echo')\n"
        "base = skate.get(echo.used.remote())\n"
        f"array = data({5 * MB}) // 2\n"
        "say(np.array_equal(skate.get(echo.twice.remote(array)), array * 2))\n"
        "say(np.array_equal(skate.get(echo.twice.remote(skate.put(array))), array * 2))\n"
        "items = echo.stream.options(num_returns='streaming').remote()\n"
        "say([int(skate.get(item).sum()) for item in items])\n"
        "del items\n"
        "while skate.get(echo.used.remote()) > base: time.sleep(0.005)\n"
        "while used(): time.sleep(0.005)\n"
        "say('freed')\ninput()",
    )
    assert [caller.line() for _ in range(4)] == ["True", "True", "[0, 300000, 600000]", "freed"]


def test_a_full_store_spills_for_what_it_reads(cluster: Cluster, program: Callable) -> None:
    other = cluster.add_node(object_store_memory=80 * MB)
    program(cluster.head_node, f"ref = skate.put(data({40 * MB}))\ngive('ref', ref)\ninput()")
    reader = program(
        other,
        f"own = [skate.put(data({20 * MB}, seed)) for seed in range(3)]\n"
        "ref = take('ref')\n"
        f"say(np.array_equal(skate.get(ref), data({40 * MB})))\n"
        f"say(all(np.array_equal(skate.get(each), data({20 * MB}, seed)) for seed, each in enumerate(own)))\n"
        "input()",
    )
    assert [reader.line(), reader.line()] == ["True", "True"]


def test_a_store_full_of_what_is_read_says_so(cluster: Cluster, program: Callable) -> None:
    other = cluster.add_node(object_store_memory=80 * MB)
    program(
        cluster.head_node,
        f"refs = [skate.put(data({40 * MB})), skate.put(data({100 * MB}))]\ngive('refs', refs)\ninput()",
    )
    reader = program(
        other,
        "from skate.exceptions import ObjectStoreFullError\n"
        f"kept = skate.get(skate.put(data({50 * MB})))\n"
        "for ref in take('refs'):\n"
        "    try: skate.get(ref)\n"
        "    except ObjectStoreFullError as error: say(str(error).split('\\n')[0])\n"
        "ref = take('refs')[0]\n"
        "del kept\n"
        "say(skate.get(ref).nbytes)\n"
        "input()",
    )
    assert "in use" in reader.line()
    assert "and the store of this node" in reader.line()
    assert reader.line() == str(40 * MB)


def test_a_spilled_object_is_served_from_disk(cluster: Cluster, program: Callable) -> None:
    small, other = cluster.add_node(object_store_memory=80 * MB), cluster.add_node()
    owner = program(
        small,
        f"refs = [skate.put(data({20 * MB}, seed)) for seed in range(6)]\n"
        "say(len(current.runtime.query('spilled objects')) >= 3)\n"
        "give('refs', refs)\ninput()\n"
        "say(len(current.runtime.query('spilled objects')) >= 3)\ninput()",
    )
    assert owner.line() == "True"
    reader = program(
        other,
        f"say(all(np.array_equal(skate.get(ref), data({20 * MB}, seed)) "
        "for seed, ref in enumerate(take('refs'))))\ninput()",
    )
    assert reader.line() == "True"
    owner.go_on()
    assert owner.line() == "True"  # nothing had to come back into the small store


LOST = """
from skate.exceptions import ObjectLostError
def read(ref):
    try: return skate.get(ref).nbytes
    except ObjectLostError as error: return type(error).__name__ + ": " + str(error)
"""


def test_the_only_copy_dies_with_its_node(cluster: Cluster, program: Callable) -> None:
    """The owner is on the head, the bytes are where its actor runs; a third node reads, before and after."""
    maker, other = cluster.add_node(), cluster.add_node()
    program(
        maker,
        "@skate.remote(num_cpus=1)\nclass Maker:\n    def make(self, seed): return data(3_000_000, seed)\n"
        "maker = Maker.remote()\ngive('maker', maker)\ninput()",
    )
    owner = program(
        cluster.head_node,
        LOST + "maker = take('maker')\nrefs = [maker.make.remote(seed) for seed in range(2)]\n"
        "skate.wait(refs, num_returns=2, fetch_local=False)\ngive('refs', refs)\ninput()\n"
        "for ref in refs: say(read(ref))\ninput()",
    )
    reader = program(
        other,
        LOST + "refs = take('refs')\nskate.wait(refs, num_returns=2, fetch_local=False)\n"
        "first = skate.get(refs[0])\nsay('read')\n"
        "input()\nfor ref in refs: say(read(ref))\ninput()",
    )
    assert reader.line() == "read"
    maker.kill_node_manager()
    cluster.worker_nodes.discard(maker)
    cluster.wait_for_nodes()
    for each in (reader, owner):
        each.go_on()
    for each in (owner, reader):
        assert each.line() == "3000000"  # the reader's copy is left
        text = each.line()
        assert text.startswith("ObjectLostError: ")
        assert maker.node_id in text
        assert "the node died" in text


@pytest.mark.parametrize("another", [True, False])
def test_the_source_is_killed_in_the_middle(cluster: Cluster, program: Callable, another: bool) -> None:
    """The pull goes on from another copy, if there is one; else it fails and says why."""
    maker = cluster.add_node(object_store_memory=500 * MB)
    other = cluster.add_node(object_store_memory=500 * MB)
    program(
        maker,
        f"@skate.remote(num_cpus=1)\nclass Maker:\n    def make(self): return data({400 * MB})\n"
        "maker = Maker.remote()\ngive('maker', maker)\ninput()",
    )
    third = cluster.add_node(object_store_memory=500 * MB)
    owner = program(
        cluster.head_node,
        "ref = take('maker').make.remote()\nskate.wait([ref], fetch_local=False)\n"
        "give('ref', ref)\nsay('made')\ninput()",
    )
    assert owner.line() == "made"
    if another:
        helper = program(third, "kept = skate.get(take('ref'))\nsay('read')\ninput()")
        assert helper.line() == "read"
    reader = program(
        other,
        LOST + "import threading\nref = take('ref')\nskate.wait([ref], fetch_local=False)\n"
        "threading.Thread(target=lambda: say(read(ref))).start()\n"
        "while not used(): time.sleep(0.001)\n"
        "say('begun')\ninput()",
    )
    assert reader.line() == "begun"
    maker.kill_node_manager()
    cluster.worker_nodes.discard(maker)
    text = reader.line()
    if another:
        assert text == str(400 * MB)
    else:
        assert text.startswith("ObjectLostError: ")
        assert maker.node_id in text


READS = """
import signal
from skate.exceptions import GetTimeoutError
ref, source = take('ref')
say(skate.wait([ref], fetch_local=False, timeout=5)[0] == [ref])
os.kill(source, signal.SIGSTOP)
say(skate.wait([ref], timeout=0.2)[0], skate.wait([ref], timeout=0)[0])
try: skate.get(ref, timeout=0.2)
except GetTimeoutError as error: say(str(error)[:11])
small = skate.put(1)
say(skate.wait([ref, small])[0] == [small])
os.kill(source, signal.SIGCONT)
say(skate.wait([ref, small], num_returns=2)[0] == [ref, small], current.runtime.store.contains(ref.binary()))
say(skate.get(ref, timeout=0).nbytes)
"""


def test_waits_for_what_comes_from_elsewhere_are_bounded(cluster: Cluster, program: Callable) -> None:
    """`wait` counts what is on another node once it is here, `get` raises when it does not come in time."""
    source, other = cluster.add_node(), cluster.add_node()
    owner = program(
        source, f"ref = skate.put(data({20 * MB}))\ngive('ref', (ref, {source.pid}))\nsay('put')\ninput()"
    )
    assert owner.line() == "put"
    reader = program(other, READS)
    expected = ["True", "[] []", "get: object", "True", "True True", str(20 * MB)]
    assert [reader.line() for _ in expected] == expected


def test_the_head_hears_how_full_a_store_is(cluster: Cluster, program: Callable) -> None:
    """A put says nothing to the node manager, and nothing else does."""
    other = cluster.add_node()
    owner = program(other, f"say('in')\ninput()\nref = skate.put(data({20 * MB}))\nsay('put')\ninput()")
    assert owner.line() == "in"

    def free() -> float:
        return float(rows(cluster.head_node)[other.node_id]["available"]["object_store_memory"]) / 10_000

    before = free()
    owner.go_on()
    assert owner.line() == "put"
    eventually(lambda: free() <= before - 20 * MB)

"""Generators whose process dies and that go on on another node: what was made before is read, or goes, on each node."""

from __future__ import annotations

import pytest
from skate.cluster_utils import Cluster

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import gc, signal
import numpy as np
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy

gc.disable()
nodes = [node["NodeID"] for node in skate.nodes()]

@skate.remote(max_retries=3, scheduling_strategy="SPREAD", resources={"one": 1}, retry_exceptions=True)
def items(turn, n, how):
    flag = os.path.join(exchange, turn)
    with open(flag, "a") as file:
        print(skate.get_runtime_context().get_node_id(), file=file)
    first = len(open(flag).readlines()) == 1
    for index in range(n):
        if first and index == n // 2:
            if how == "raise": raise LookupError
            os.kill(os.getpid(), signal.SIGKILL)
        yield np.full(200_000, index, np.uint8)

def readers():
    return [
        skate.remote(lambda refs: int(skate.get(refs[0])[0])).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        for node in nodes
    ]

def nodes_used():
    # the attempts at one call, at most
    return max(len(set(open(os.path.join(exchange, name)).readlines())) for name in os.listdir(exchange))

def empty():
    total, free = skate.cluster_resources(), skate.available_resources()
    return total["object_store_memory"] == free["object_store_memory"]
"""


@pytest.fixture
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"one": 1}})
    made.add_node(num_cpus=2, resources={"one": 1})
    yield made
    made.shutdown()


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_nothing_is_left_of_the_first_attempt(cluster: Cluster, program, how: str) -> None:
    """Read by who was first, on each node, while it is tried again; streamed, gathered, or into a number of refs."""
    driver = program(
        cluster.head_node,
        PROGRAM
        + f"how = {how!r}\n"
        + """
on = readers()
for turn in range(20):
    # (nobody says that an attempt must run on another node; one after an error keeps its worker, as a rule)
    if turn and (nodes_used() == 2 or how == "raise"): break
    name = f"stream {turn}"
    seen = []
    for ref in items.remote(name, 8, how):
        seen.append([read.remote([ref]) for read in on])
    assert [skate.get(both) for both in seen] == [[i, i] for i in range(8)]
    del ref, seen
    for returns in ("dynamic", 8):
        name = f"{returns} {turn}"
        refs = items.options(num_returns=returns).remote(name, 8, how)
        refs = list(skate.get(refs)) if returns == "dynamic" else refs
        assert [int(skate.get(ref)[0]) for ref in refs] == list(range(8))
        del refs
    generator = items.remote(f"dropped {turn}", 8, how)
    next(generator)
    del generator
say(nodes_used())
while not empty(): time.sleep(0.01)
say("empty")
input()
""",
    )
    assert driver.line() == "2" or how == "raise", "at least one of them went on on the other node"
    assert driver.line() == "empty"

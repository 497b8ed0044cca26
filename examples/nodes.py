"""Several nodes: where tasks run, what moves between nodes, and what happens when one dies.

The nodes are of this machine, by skate.cluster_utils, and talk as nodes of many machines do. There, start a cluster
with `skate start --head` on one machine and `skate start --address …` on the others, and leave `Cluster` out.

Run it:  python examples/nodes.py
"""

import asyncio
import threading

import numpy as np
import skate
from skate.cluster_utils import Cluster
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def here():
    return skate.get_runtime_context().get_node_id()


@skate.remote
def where():
    return here()


@skate.remote
def make(size):
    return np.ones(size, dtype=np.uint8)


@skate.remote
def count(array):
    return here(), int(array.sum())


@skate.remote(num_cpus=0)
class Witness:
    """Hears where a task begins, each time."""

    def __init__(self):
        self.seen = []
        self.first = asyncio.Event()

    async def begins(self, node):
        self.seen.append(node)
        self.first.set()
        return len(self.seen)

    async def first_node(self):
        await self.first.wait()
        return self.seen[0]


@skate.remote(max_retries=1)
def outlive(witness):
    if skate.get(witness.begins.remote(here())) == 1:
        threading.Event().wait()  # until its node is gone
    return here()


def main() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        north = cluster.add_node(num_cpus=2, labels={"side": "north"})
        south = cluster.add_node(num_cpus=2, labels={"side": "south"}, resources={"telescope": 1})
        skate.init(address=cluster.address)
        names = {cluster.head_node.node_id: "the head", north.node_id: "north", south.node_id: "south"}
        print(f"{len(skate.nodes())} nodes with {skate.cluster_resources()['CPU']:.0f} CPUs")

        # By its name, by a label, by what only one node has.
        in_north = NodeAffinitySchedulingStrategy(north.node_id, soft=False)
        print("by name:", names[skate.get(where.options(scheduling_strategy=in_north).remote())])
        print("by label:", names[skate.get(where.options(label_selector={"side": "south"}).remote())])
        print("by resource:", names[skate.get(where.options(resources={"telescope": 1}).remote())])

        # What a task made stays where it is; one that needs it goes there, or it is brought to it.
        array = make.options(scheduling_strategy=in_north).remote(4_000_000)
        in_south = count.options(label_selector={"side": "south"})
        node, total = skate.get(in_south.remote(array))
        print(f"counted in the {names[node]}: {total}")
        print("read here:", skate.get(array).nbytes)

        # A node dies; what ran there runs again elsewhere.
        in_the_head = NodeAffinitySchedulingStrategy(cluster.head_node.node_id, soft=False)
        witness = Witness.options(scheduling_strategy=in_the_head).remote()
        rather_south = NodeAffinitySchedulingStrategy(south.node_id, soft=True)
        task = outlive.options(scheduling_strategy=rather_south).remote(witness)
        print("a task began in the", names[skate.get(witness.first_node.remote())])
        cluster.remove_node(south, allow_graceful=False)
        print("it ended elsewhere:", skate.get(task) != south.node_id)
        print("nodes that live:", sum(node["Alive"] for node in skate.nodes()))
        skate.shutdown()


if __name__ == "__main__":
    main()

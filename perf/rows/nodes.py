"""How fast does a large object get from one node to another, beside the same bytes over a plain TCP socket?

The nodes are of this machine, by cluster_utils: what is encrypted, copied and put into a store is, what a wire would
take is not.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from time import perf_counter

import numpy as np

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

GB, MB = 1e9, 1_000_000
OBJECT_BYTES = 200 * MB
STORE_BYTES = 500 * MB
CHUNK_BYTES = 1 << 20

#: a program on the other node: for each line it puts one array, and says its ref
_OWNER = """
import pickle, sys
import numpy as np
import skate
skate.init(address=sys.argv[1], log_to_driver=False)
array = np.ones(int(sys.argv[2]), dtype=np.uint8)
for _ in sys.stdin:
    ref = skate.put(array)
    print(pickle.dumps(ref).hex(), flush=True)
"""


@measure(
    Row("a 200 MB array, from node to node", "GB/s", limit="nodes.socket_copy"),
    needs={"nodes"},
    group="transfer",
    num_cpus=0,
)
def transfer(contender: Contender, pace: Pace) -> float:
    import skate
    from skate.cluster_utils import Cluster

    with Cluster(initialize_head=True, head_node_args={"object_store_memory": STORE_BYTES}) as cluster:
        other = cluster.add_node(object_store_memory=STORE_BYTES)
        cluster.connect()
        owner = subprocess.Popen(
            [sys.executable, "-c", _OWNER, other.session_dir, str(OBJECT_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert owner.stdin is not None
        assert owner.stdout is not None
        try:
            moved, elapsed = 0, -pace.warm_s
            while elapsed < pace.run_s or not moved:
                owner.stdin.write("\n")
                owner.stdin.flush()
                ref = pickle.loads(bytes.fromhex(owner.stdout.readline()))
                skate.wait([ref])
                start = perf_counter()
                array = skate.get(ref)
                took = perf_counter() - start
                if array.nbytes != OBJECT_BYTES or not array[:: 1 << 16].all():
                    raise ValueError("it did not come whole")
                del array, ref  # before the next one needs room
                if elapsed >= 0:
                    moved += OBJECT_BYTES
                    elapsed += took
                else:
                    elapsed = min(0.0, elapsed + took)
        finally:
            owner.stdin.close()
            owner.wait()
            owner.stdout.close()
    return moved / GB / elapsed


@measure(
    Row("limit: 200 MB over a TCP socket into touched pages", "GB/s"), needs={"machine"}, group="transfer"
)
def socket_copy(contender: Contender, pace: Pace) -> float:
    target = np.zeros(OBJECT_BYTES, dtype=np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            try:
                _send_for_ever(server.getsockname()[1])
            finally:
                os._exit(0)
        connection, _ = server.accept()
    with connection, memoryview(target) as room:

        def copy() -> None:
            at = 0
            while at < OBJECT_BYTES:
                count = connection.recv_into(room[at : at + CHUNK_BYTES])
                if not count:
                    raise ConnectionError("the sender has ended")
                at += count

        rate = pace.rate(copy, OBJECT_BYTES / GB)
    os.waitpid(child, 0)
    return rate


def _send_for_ever(port: int) -> None:
    source = memoryview(np.ones(OBJECT_BYTES, dtype=np.uint8))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        try:
            while True:
                connection.sendall(source)
        except OSError:
            pass  # the reader has enough

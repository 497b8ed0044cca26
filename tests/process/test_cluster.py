"""Nodes that join one another, leave, die, are refused; programs on one node that use processes of another."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import skate
from api.rendezvous import eventually
from leftovers import processes, wait_for_nothing_left
from skate._c import frames
from skate.cluster_utils import Cluster, ClusterNode
from skate.core.membership import GRACE_SECONDS
from skate.driver.nodes import CannotJoin, ask_nodes
from skate.net.cluster import SILENCE_MS
from skate.net.cluster_key import KEY_BYTES, Keys, keys_of, make_key, read_key, write_key
from skate.node.sessions import standing
from skate.wire.cluster import HELLO, REFUSED, WELCOME, pack_letter, unpack_letter

from .clusters import Peer, living, log_of, rows, wait_for_log
from .drivers import lives

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


@pytest.fixture
def two(cluster: Cluster) -> tuple[ClusterNode, ClusterNode]:
    assert cluster.head_node is not None
    return cluster.head_node, cluster.add_node(num_cpus=1)


def keys(cluster: Cluster) -> Keys:
    return keys_of(read_key(cluster._key_file))


@pytest.fixture
def peer(cluster: Cluster) -> Iterator[Peer]:
    somebody = Peer(keys(cluster))
    yield somebody
    somebody.close()


# ----------------------------------------------------------------------------------------------- joining, the table


def test_all_nodes_know_all_nodes(cluster: Cluster) -> None:
    for number in range(3):
        cluster.add_node(num_cpus=number, resources={"x": 1}, labels={"zone": f"z{number}"})
    cluster.wait_for_nodes()
    everybody = {node.node_id for node in cluster.list_all_nodes()}
    for node in cluster.list_all_nodes():
        eventually(lambda node=node: living(node) == everybody)
    table = rows(cluster.list_all_nodes()[-1])
    assert [name for name, row in table.items() if row["head"]] == [cluster.head_node.node_id]  # type: ignore[union-attr]
    assert sorted(row["labels"].get("zone", "") for row in table.values()) == ["", "z0", "z1", "z2"]


def test_what_a_program_sees_of_the_nodes(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=3, resources={"special": 2}, labels={"zone": "b"})
    cluster.connect(namespace="here")
    assert cluster.connected
    assert skate.get_runtime_context().namespace == "here"
    assert skate.get_runtime_context().gcs_address == cluster.address
    assert skate.cluster_resources()["CPU"] == 4
    assert skate.cluster_resources()["special"] == 2
    assert skate.available_resources()["special"] == 2
    by_id = {each["NodeID"]: each for each in skate.nodes()}
    there = by_id[node.node_id]
    assert there["Alive"]
    assert there["alive"]
    assert there["NodeManagerAddress"] == "127.0.0.1"
    assert f"127.0.0.1:{there['NodeManagerPort']}" == node.address
    assert there["NodeManagerHostname"] == socket.gethostname()
    assert there["Resources"]["CPU"] == 3
    assert there["Labels"]["zone"] == "b"
    cluster.remove_node(node)
    eventually(lambda: skate.cluster_resources()["CPU"] == 1)
    (dead,) = [each for each in skate.nodes() if not each["Alive"]]
    assert dead["NodeID"] == node.node_id
    assert "told to stop" in dead["DeathReasonMessage"]
    assert dead["Resources"] == {}


def test_what_is_used_on_one_node_is_seen_on_the_other(two: tuple, program: Callable) -> None:
    head, other = two
    busy = program(
        other,
        "@skate.remote\ndef hold(): time.sleep(1000)\n"
        "refs = [hold.remote() for _ in range(3)]\nsay('asked'); sys.stdin.readline()",
    )
    assert busy.line() == "asked"
    eventually(
        lambda: "CPU" not in rows(other)[other.node_id]["available"]
    )  # who asks there takes nothing away
    eventually(lambda: "CPU" not in rows(head)[other.node_id]["available"])
    eventually(lambda: [demand[0] for demand in rows(head)[other.node_id]["demands"]] == [{"CPU": 1.0}])
    busy.kill()
    eventually(lambda: rows(head)[other.node_id]["available"].get("CPU") == 10_000)
    eventually(lambda: rows(head)[other.node_id]["demands"] == [])


def test_a_node_joins_in_well_under_a_second_more_than_it_takes_to_start(cluster: Cluster) -> None:
    started = time.monotonic()
    cluster.add_node()
    assert time.monotonic() - started < 5


def test_programs_come_in_by_the_head_s_address(two: tuple, cluster: Cluster, program: Callable) -> None:
    head, other = two
    assert skate.init(address=cluster.address)["node_id"] == head.node_id
    skate.shutdown()
    assert skate.init(address=other.session_dir)["node_id"] == other.node_id
    skate.shutdown()
    port = head.address.rpartition(":")[2]
    assert skate.init(address=f"localhost:{port}")["node_id"] == head.node_id
    skate.shutdown()
    with pytest.raises(ConnectionError, match=r"skate start --address 127\.0\.0\.1:1"):
        skate.init(address="127.0.0.1:1")


def test_a_driver_leaves_and_the_node_stays(two: tuple) -> None:
    head, _ = two
    for _ in range(3):
        skate.init(address=head.session_dir)
        started = time.monotonic()
        skate.shutdown()  # before the node's link to it is up
        assert time.monotonic() - started < 5
    assert head.any_processes_alive()


# --------------------------------------------------------------------------------------- processes of other nodes


MAKE = """
@skate.remote
class Box:
    def __init__(self): self.kept = []
    def add(self, what): self.kept.append(what); return len(self.kept)
    def numbers(self): return self.kept
    def keep(self, refs): self.refs = refs
    def read(self): return skate.get(self.refs)
    def pid(self): return os.getpid()
    def die(self): os._exit(3)
"""
#: programs, or parts of them: one makes an actor for the others, others have that keep a ref and
#: tell of it
A_BOX = MAKE + "box = Box.remote()\ngive('box', box)\ninput()"
KEPT_ELSEWHERE = """
box = take('box')
ref = skate.put([1, 2, 3])
key = ref.binary()
skate.get(box.keep.remote([ref]))
del ref
"""
IS_KEPT = "say(key in current.runtime.references.entries)\n"
UNTIL_FREED = """
while key in current.runtime.references.entries: time.sleep(0.005)
say('freed')
input()
"""


def test_small_objects_are_had_from_another_node(two: tuple, program: Callable) -> None:
    head, other = two
    first = program(
        head, "a, b = skate.put({'a': [1, None]}), skate.put('x' * 50_000)\ngive('refs', (a, b))\ninput()"
    )
    second = program(other, "a, b = take('refs')\nsay(skate.get(a), len(skate.get(b)))\ninput()")
    assert second.line() == "{'a': [1, None]} 50000"
    first.kill()
    second.kill()


def test_an_actor_is_called_from_another_node_in_order(two: tuple, program: Callable) -> None:
    head, other = two
    program(head, A_BOX)
    caller = program(
        other,
        "box = take('box')\n"
        "refs = [box.add.remote(n) for n in range(2000)]\n"
        "say(skate.get(refs) == list(range(1, 2001)))\n"
        "say(skate.get(box.numbers.remote()) == list(range(2000)))\n"
        "sizes = [10, 90_000, 0, 50_000] * 20\n"
        "data = [bytes([n % 256]) * size for n, size in enumerate(sizes)]\n"
        "skate.get([box.add.remote(each) for each in data])\n"
        "say(skate.get(box.__ray_call__.remote(lambda self: [len(each) for each in self.kept[2000:]])) == sizes)\n"
        "try: skate.get(box.add.remote())\n"
        "except TypeError as error: say('TypeError')\n"
        "input()",
    )
    assert [caller.line() for _ in range(4)] == ["True", "True", "True", "TypeError"]


def test_the_name_of_an_actor_that_was_killed_is_free_for_the_killer(two: tuple, program: Callable) -> None:
    """Its own node hears of the kill, and the head of the name: who has killed it does not find it in between."""
    head, other = two
    program(
        other,
        MAKE
        + "boxes = [Box.options(name=f'box{i}', lifetime=[None, 'detached'][i % 2]).remote() for i in range(10)]\n"
        "skate.get([box.pid.remote() for box in boxes])\ngive('made', 10)\ninput()",
    )
    caller = program(
        head,
        MAKE + "made = take('made')\nfound = 0\n"
        "for i in range(made):\n"
        "    skate.kill(skate.get_actor(f'box{i}'))\n"
        "    try: skate.get_actor(f'box{i}')\n"
        "    except ValueError: pass\n"
        "    else: found += 1\n"
        "    box = Box.options(name=f'box{i}').remote()\n"
        "    assert skate.get(skate.get_actor(f'box{i}').add.remote(i)) == 1\n"
        "say(found)\ninput()",
    )
    assert caller.line() == "0"


def test_refs_that_are_handed_to_another_node_keep_their_objects(two: tuple, program: Callable) -> None:
    head, other = two
    program(head, A_BOX)
    owner = program(
        other,
        KEPT_ELSEWHERE
        + "say(skate.get(box.read.remote()))\n"
        + IS_KEPT
        + "skate.get(box.keep.remote(None))\n"
        + UNTIL_FREED,
    )
    assert [owner.line() for _ in range(3)] == ["[[1, 2, 3]]", "True", "freed"]


def test_a_borrower_s_death_on_another_node_frees_what_it_held(two: tuple, program: Callable) -> None:
    head, other = two
    maker = program(head, A_BOX)
    owner = program(
        other,
        KEPT_ELSEWHERE + IS_KEPT + UNTIL_FREED,
    )
    assert owner.line() == "True"
    maker.kill()
    assert owner.line() == "freed"


def test_a_borrower_on_another_node_that_the_owner_never_spoke_with(two: tuple, program: Callable) -> None:
    """The owner hears of it from a third process, and of its death nevertheless."""
    head, other = two
    first = program(head, MAKE + "box = Box.remote()\ngive('far', box)\ninput()")
    program(other, MAKE + "box = Box.remote()\ngive('near', box)\ninput()")
    owner = program(
        other,
        "near = take('near')\n"
        "ref = skate.put([1, 2, 3])\n"
        "key = ref.binary()\n"
        "skate.get(near.keep.remote([ref]))\n"
        "give('ready', True)\n"
        "take('passed on')\n"
        "del ref\n"
        "skate.get(near.keep.remote(None))\n" + IS_KEPT + UNTIL_FREED,
    )
    program(
        other,
        "near, far = take('near'), take('far')\ntake('ready')\n"
        "say(skate.get(near.__ray_call__.remote(lambda self, far: skate.get(far.keep.remote(self.refs)), far)))\n"
        "give('passed on', True)\ninput()",
    )
    assert owner.line() == "True"
    first.kill()
    assert owner.line() == "freed"


def test_the_owner_s_end_is_heard_on_the_other_node(two: tuple, program: Callable) -> None:
    head, other = two
    owner = program(
        head,
        MAKE + "@skate.remote\ndef never(): time.sleep(1000)\n"
        "box, value = Box.remote(), skate.put(1)\n"
        "skate.get(box.pid.remote())  # it is placed before the task takes the CPU\n"
        "pending = never.remote()\n"
        "give('all', (box, pending, value))\ninput()",
    )
    borrower = program(
        other,
        "from skate.exceptions import OwnerDiedError, ActorDiedError\n"
        "box, pending, value = take('all')\n"
        "say(skate.get(box.add.remote(1)))\n"
        "try: skate.get(pending)\n"
        "except OwnerDiedError as error: say('OwnerDiedError')\n"
        "try: skate.get(value)\n"
        "except OwnerDiedError as error: say('OwnerDiedError')\n"
        "try: skate.get(box.add.remote(1))\n"
        "except ActorDiedError as error: say('ActorDiedError')\n"
        "input()",
    )
    assert borrower.line() == "1"
    owner.kill()
    assert [borrower.line() for _ in range(3)] == ["OwnerDiedError", "OwnerDiedError", "ActorDiedError"]


def test_an_actor_s_death_is_heard_on_the_other_node(two: tuple, program: Callable) -> None:
    head, other = two
    program(head, A_BOX)
    caller = program(
        other,
        "from skate.exceptions import ActorDiedError\n"
        "box = take('box')\n"
        "say(skate.get(box.add.remote(1)))\n"
        "try: skate.get(box.die.remote())\n"
        "except ActorDiedError as error: say('exit status 3' in str(error))\n"
        "input()",
    )
    assert [caller.line() for _ in range(2)] == ["1", "True"]


def test_an_actor_that_starts_again_is_found_again_from_the_other_node(two: tuple, program: Callable) -> None:
    head, other = two
    program(head, MAKE + "box = Box.options(max_restarts=1).remote()\ngive('box', box)\ninput()")
    caller = program(
        other,
        "box = take('box')\n"
        "before = skate.get(box.pid.remote())\n"
        "skate.kill(box, no_restart=False)\n"
        "while skate.get(box.pid.options(max_task_retries=-1).remote()) == before: pass\n"
        "say('another process')\ninput()",
    )
    assert caller.line() == "another process"


# ------------------------------------------------------------------------------------------------------------ deaths


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_node_s_death_is_heard_by_programs_on_the_others(
    how: str, two: tuple, program: Callable, cluster: Cluster
) -> None:
    head, other = two
    program(
        other,
        MAKE + "@skate.remote\ndef never(): time.sleep(1000)\n"
        "box = Box.remote()\n"
        "skate.get(box.pid.remote())  # it is placed before the task takes the CPU\n"
        "pending = never.remote()\n"
        "give('all', (box, pending))\ninput()",
    )
    borrower = program(
        head,
        "from skate.exceptions import OwnerDiedError, ActorDiedError\n"
        "box, pending = take('all')\n"
        "say(skate.get(box.pid.remote()))\n"
        "try: skate.get(pending)\n"
        "except OwnerDiedError as error: say('OwnerDiedError')\n"
        "try: skate.get(box.add.remote(1))\n"
        "except ActorDiedError as error: say('ActorDiedError')\n"
        "input()",
    )
    worker = int(borrower.line())
    started = time.monotonic()
    if how == "kill":
        other.kill_node_manager()
    else:
        cluster.remove_node(other)
    assert [borrower.line() for _ in range(2)] == ["OwnerDiedError", "ActorDiedError"]
    assert time.monotonic() - started < GRACE_SECONDS + 5
    assert not lives(worker)
    assert living(head) == {head.node_id}


def test_who_had_nothing_to_do_with_a_node_before_it_died_is_answered(
    two: tuple, program: Callable, cluster: Cluster
) -> None:
    """Whatever is asked of a process or node that is gone ends, though the asker never heard of its death: of an actor
    (also one that was never made), of an object, by a process that is older than the death or younger."""
    head, other = two
    program(
        other,
        MAKE + "@skate.remote\ndef never(): time.sleep(1000)\n"
        "@skate.remote\nclass Waits:\n    def __init__(self, argument): pass\n    def numbers(self): pass\n"
        "boxes = Box.remote(), Box.options(num_cpus=9).remote(), Waits.remote(never.remote())\n"
        "give('boxes', (*boxes, skate.put([1])))\n"
        "input()",
    )
    ask = (
        "def ask(what):\n"
        "    try: return skate.get(what(), timeout=20)\n"
        "    except skate.exceptions.RayError as error: return type(error).__name__\n"
        "def ask_all(old, gone, unborn, ref):\n"
        "    skate.kill(gone, no_restart=False)\n"
        "    return [ask(gone.numbers.remote), ask(unborn.numbers.remote), ask(old.numbers.remote), ask(lambda: ref)]\n"
    )
    caller = program(
        head,
        ask + "old, gone, unborn, ref = take('boxes')\nsay('taken')\ninput()\n"
        "say(*ask_all(old, gone, unborn, ref))\n"
        "del gone, unborn, old, ref\n"
        "young = skate.remote(lambda: ask_all(*take('boxes')))\n"
        "say(*skate.get(young.remote()))\ninput()",
    )
    assert caller.line() == "taken"
    cluster.remove_node(other)
    caller.go_on()
    assert caller.line() == "ActorDiedError ActorDiedError ActorDiedError OwnerDiedError"
    assert caller.line() == "ActorDiedError ActorDiedError ActorDiedError OwnerDiedError"


def test_kill_9_of_a_node_manager_is_noticed_by_all(cluster: Cluster) -> None:
    first, second = cluster.add_node(), cluster.add_node()
    eventually(lambda: len(living(second)) == 3)
    first.kill_node_manager()
    assert cluster.head_node is not None
    for node in (cluster.head_node, second):
        eventually(lambda node=node: first.node_id not in living(node), GRACE_SECONDS + 5)
    assert "link was lost" in rows(second)[first.node_id]["cause"]


def test_a_busy_node_is_not_taken_for_dead(two: tuple) -> None:
    """Its one thread does nothing for longer than heartbeats may stay away: ZeroMQ's I/O thread answers them."""
    head, other = two
    with one_thread_stopped(other.pid):
        time.sleep(SILENCE_MS / 1000 + GRACE_SECONDS + 3)
        assert living(head) == {head.node_id, other.node_id}
    assert living(other) == {head.node_id, other.node_id}
    assert "was lost" not in log_of(head)


@contextmanager
def one_thread_stopped(tid: int) -> Iterator[None]:
    """A thread of another process stands still; the others run on. As a debugger does it."""
    seize, interrupt, detach = 0x4206, 0x4207, 17
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(seize, tid, None, None):
        pytest.skip(f"no other process can be traced here: {os.strerror(ctypes.get_errno())}")
    try:
        assert libc.ptrace(interrupt, tid, None, None) == 0
        os.waitpid(tid, 0x40000000)  # __WALL
        yield
    finally:
        libc.ptrace(detach, tid, None, None)


def test_a_node_that_stood_still_for_too_long_is_dead_and_ends(two: tuple) -> None:
    head, other = two
    os.kill(other.pid, signal.SIGSTOP)
    try:
        eventually(lambda: other.node_id not in living(head), GRACE_SECONDS + 10)
    finally:
        os.kill(other.pid, signal.SIGCONT)
    eventually(lambda: not other.any_processes_alive(), 15)


def test_a_node_that_stood_still_for_a_moment_goes_on(two: tuple, program: Callable) -> None:
    head, other = two
    program(other, A_BOX)
    caller = program(
        head,
        "box = take('box')\nsay(skate.get(box.add.remote(1)))\ninput()\n"
        "say(skate.get([box.add.remote(n) for n in range(100)])[-1])\ninput()",
    )
    assert caller.line() == "1"
    os.kill(other.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(other.pid, signal.SIGCONT)
    caller.go_on()
    assert caller.line() == "101"
    assert living(head) == {head.node_id, other.node_id}


def test_the_head_dies_and_the_others_go_on_until_it_is_back(tmp_path: Path, program: Callable) -> None:
    key_file = str(tmp_path / "key")
    write_key(key_file, make_key())

    def start(*arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "skate", "start", *arguments, "--node-ip-address", "127.0.0.1",
             "--cluster-key-file", key_file, "--num-cpus", "1", "--object-store-memory", "100000000"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return standing()[-1]

    try:
        head = start("--head")
        first, second = (start("--address", head["address"]) for _ in range(2))
        eventually(lambda: len(ask_nodes(second["folder"])) == 3)
        os.kill(head["pid"], signal.SIGKILL)
        skate.init(address=first["folder"])  # programs on the others go on
        assert skate.get(skate.remote(lambda: 1).remote()) == 1
        again = start("--head", "--port", head["address"].rpartition(":")[2])

        def table(folder: str) -> dict[str, bool]:
            return {row["node"]: row["alive"] for row in ask_nodes(folder)}

        wanted = {head["node"]: False, again["node"]: True, first["node"]: True, second["node"]: True}
        for facts in (again, first, second):
            eventually(lambda facts=facts: table(facts["folder"]) == wanted, 20)
        assert skate.get(skate.remote(lambda: 2).remote()) == 2
    finally:
        skate.shutdown()
        assert (
            subprocess.run([sys.executable, "-m", "skate", "stop"], check=False, timeout=60).returncode == 0
        )


# ------------------------------------------------------------------------------------------------------- who may join


def test_a_node_with_another_key_is_refused_and_both_sides_say_so(cluster: Cluster, tmp_path: Path) -> None:
    write_key(str(tmp_path / "key"), "cd" * KEY_BYTES)
    assert cluster.head_node is not None
    own, cluster._key_file = cluster._key_file, str(tmp_path / "key")
    try:
        with pytest.raises(CannotJoin, match="another cluster key"):
            cluster.add_node()
    finally:
        cluster._key_file = own
    line = wait_for_log(cluster.head_node, "127.0.0.1", "knocked", "not let in")
    assert "WARNING" in line
    assert len(living(cluster.head_node)) == 1
    cluster.add_node()


@pytest.mark.parametrize(
    ("named", "changed"), [("Python", {"python": "2.7"}), ("protocol", {"protocol": 99})]
)
def test_other_versions_are_refused_by_name(named: str, changed: dict, cluster: Cluster, peer: Peer) -> None:
    """Whoever says hello reads why not, however differently it speaks otherwise."""
    assert cluster.head_node is not None
    own = rows(cluster.head_node)[cluster.head_node.node_id]
    hello = {
        "protocol": frames.VERSION,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "skate": "0.0.1",
        "node": peer.me[:4].hex(),
        "address": peer.address,
        "row": own | {"node": peer.me[:4].hex(), "address": peer.address},
    } | changed
    link = peer.link(cluster.head_node.address)
    link.send_multipart(pack_letter(HELLO, hello))
    why = unpack_letter(peer.heard(lambda parts: parts[0] == REFUSED))["why"]
    (value,) = changed.values()
    assert named in why
    assert str(value) in why
    wait_for_log(cluster.head_node, "refused", named, peer.address)
    link.send_multipart(pack_letter(HELLO, hello | {"protocol": frames.VERSION, "python": hello_python()}))
    assert "rows" in unpack_letter(peer.heard(lambda parts: parts[0] == WELCOME))
    eventually(lambda: peer.me[:4].hex() in living(cluster.head_node))


def hello_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_joining_node_prints_why_it_was_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Another protocol: the node's own module says that it speaks one."""
    program = (
        "import sys; from skate import cli; from skate.driver import nodes\n"
        "boot = nodes.boot\n"
        "other = 'import skate.node.cluster as c; was = c.identity; ' \\\n"
        "    'c.identity = lambda: was()._replace(python=\"3.99\"); main('\n"
        "nodes.boot = lambda *what: [each.replace('main(', other) for each in boot(*what)]\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "start", "--address", str(cluster.address), "--num-cpus", "1",
         "--cluster-key-file", cluster._key_file, "--node-ip-address", "127.0.0.1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "3.99" in done.stderr
    assert "minor version" in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.head_node is not None
    wait_for_log(cluster.head_node, "refused", "3.99")


def test_who_is_not_the_head_says_where_it_is(two: tuple, cluster: Cluster) -> None:
    head, other = two
    cluster.head_node, kept = other, cluster.head_node
    try:
        with pytest.raises(CannotJoin, match=f"join at {head.address}"):
            cluster.add_node()
    finally:
        cluster.head_node = kept


def test_nobody_at_the_address(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "skate", "start", "--address", f"127.0.0.1:{port}", "--num-cpus", "1",
         "--cluster-key-file", cluster._key_file],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nobody answers" in done.stderr


def test_a_port_that_is_taken(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    port = int(cluster.head_node.address.rpartition(":")[2])
    with pytest.raises(CannotJoin, match=f"{port} cannot be bound"):
        cluster.add_node(port=port)


def test_the_key_lies_in_no_other_file_and_no_environment(two: tuple, cluster: Cluster) -> None:
    key = read_key(cluster._key_file)
    for node in two:
        facts = json.loads(Path(node.session_dir, "facts.json").read_text())
        assert facts["key_file"] == cluster._key_file
        for path in Path(node.session_dir).rglob("*"):
            if path.is_file() and path.suffix != ".now":
                assert key not in path.read_text(errors="replace")
    for pid in processes():
        try:
            assert key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile


# --------------------------------------------------------------------------------------------------- cluster_utils


def test_a_cluster_s_nodes_die_with_its_maker(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from skate.cluster_utils import Cluster\n"
            "c = Cluster(initialize_head=True); n = c.add_node()\n"
            "print(c.head_node.pid, n.pid, flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdout is not None
    assert maker.stdin is not None
    pids = [int(word) for word in maker.stdout.readline().split()]
    assert all(map(lives, pids))
    maker.kill()
    maker.wait()
    maker.stdout.close()
    maker.stdin.close()
    eventually(lambda: not any(map(lives, pids)), 5)
    wait_for_nothing_left()


def test_what_cluster_refuses(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="initialize_head"):
        Cluster(connect=True)
    with pytest.raises(TypeError):
        cluster.add_node(num_cpu=1)
    cluster.connect()
    assert cluster.head_node is not None
    with pytest.raises(ValueError, match="came in through"):
        cluster.remove_node(cluster.head_node)
    assert not skate.is_initialized()
    head = cluster.head_node
    cluster.add_node().kill_node_manager()
    assert not cluster.remaining_processes_alive()
    eventually(lambda: len(living(head)) == 1)
    with pytest.raises(TimeoutError, match="not as many"):
        cluster.wait_for_nodes(timeout=0.1)


def test_a_cluster_can_be_made_in_steps() -> None:
    made = Cluster()
    assert made.address is None
    assert made.list_all_nodes() == []
    with pytest.raises(RuntimeError, match="no head"):
        made.connect()
    head = made.add_node(num_cpus=2)
    other = made.add_node(num_cpus=3)
    assert made.head_node is head
    assert made.worker_nodes == {other}
    assert made.address == head.address == made.gcs_address
    made.connect()
    assert skate.cluster_resources()["CPU"] == 5
    assert log_of(head) is not None
    made.shutdown()
    made.shutdown()
    assert not skate.is_initialized()

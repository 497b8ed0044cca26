"""Garbage at the TCP port of a running cluster, without its key and with it: it says so, lives on, and works."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import skate
import zmq
from api.rendezvous import eventually
from skate._c import frames
from skate.cluster_utils import Cluster, ClusterNode
from skate.ids import NodeId, ProcessId, TaskId, process_id
from skate.net.cluster_key import Keys, keys_of, make_key, read_key
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from skate.wire import messages as m
from skate.wire.cluster import (
    ACK,
    DATA,
    GREETING,
    HELLO,
    REFUSED,
    WELCOME,
    Envelope,
    addressed,
    pack_envelope,
    pack_letter,
    parse_address,
)
from skate.wire.messages import encode

from .clusters import Peer, frame_of, living, log_of, rows, wait_for_log
from .forgeries import forgeries

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def peers() -> Iterator[Callable[[Keys | None], Peer]]:
    """Makes peers with keys; they are gone after the test."""
    made: list[Peer] = []

    def make(keys: Keys | None) -> Peer:
        made.append(Peer(keys))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


@pytest.fixture
def peer(cluster: Cluster, peers: Callable[[Keys | None], Peer]) -> Peer:
    """Somebody who has the key."""
    return peers(keys_of(read_key(cluster._key_file)))


@pytest.fixture
def nodes(cluster: Cluster) -> list[ClusterNode]:
    return cluster.list_all_nodes()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True)
    made.add_node()
    made.wait_for_nodes()
    everybody = {node.node_id for node in made.list_all_nodes()}
    yield made
    try:
        for node in made.list_all_nodes():  # whatever came
            assert node.any_processes_alive()
            eventually(lambda node=node: everybody <= living(node))
            assert "Traceback" not in log_of(node)
        skate.init(address=made.add_node().session_dir)
        assert skate.get(skate.remote(lambda: 7).remote(), timeout=30) == 7
    finally:
        skate.shutdown()
        made.shutdown()


def noise(seed: int) -> list[list[bytes]]:
    """Messages of any number of parts that are none of ours, or nearly ours."""
    chance = random.Random(seed)
    whole = [
        bytes(part)
        for part in pack_envelope(
            Envelope(DATA, process_id(NodeId(b"peer"), 1), process_id(NodeId(b"peer"), 2), 1, 0), b"x"
        )
    ]
    found = [
        [b""],
        [b"", b""],
        [b"\0"] * 50,
        [HELLO],
        [HELLO, b"{}"],
        [WELCOME, b"[]"],
        [REFUSED, b"\xff"],
        [b"sk"],
    ]
    found += [[whole[0][:length], b"x"] for length in range(len(whole[0]))]
    found += [
        [chance.randbytes(chance.randrange(80)) for _ in range(chance.randrange(1, 5))] for _ in range(200)
    ]
    found += [
        [b"sk\x63\0" + whole[0][4:], b"x"],
        [b"sk" + chance.randbytes(34), b"x"],
        [HELLO, b"[" * 200_000],
    ]
    return found


def test_bytes_without_the_key(nodes: list[ClusterNode]) -> None:
    """Nothing comes back but ZeroMQ's own greeting, and the log says who it was."""
    chance = random.Random(5)
    for node in nodes:
        place = parse_address(node.address)
        for data in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"",
            chance.randbytes(10_000),
            b"\xff" + bytes(8) + b"\x7f" * 100,
        ):
            with socket.create_connection(place) as connection:
                connection.settimeout(5)
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    answer = b""
                    while more := connection.recv(1000):
                        answer += more
                except OSError:
                    continue  # it was sent away
                assert len(answer) <= 64
        wait_for_log(node, "127.0.0.1:", "knocked", "not let in")


def test_peers_without_the_key_are_not_heard(
    cluster: Cluster, nodes: list[ClusterNode], peers: Callable[[Keys | None], Peer]
) -> None:
    right = keys_of(read_key(cluster._key_file))
    wrong = keys_of(make_key())
    half = right._replace(client=wrong.client)  # the server's public key is no secret
    for keys in (None, wrong, half):
        peer = peers(keys)
        for node in nodes:
            link = peer.link(node.address, monitored=True)
            link.send_multipart(pack_letter(HELLO, {"address": peer.address}))
            assert peer.monitor.poll(10_000)
            event = int.from_bytes(peer.monitor.recv_multipart()[0][:2], "little")
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert not peer.inbox.poll(100), "it was answered"
    for node in nodes:
        log = log_of(node)
        assert "refused" not in log, "something was read"
        # A connection that was gone before the node looked is of an unknown address.
        assert log.count("WARNING 127.0.0.1") == 1, "a line for each attempt"
        assert log.count("WARNING an unknown address knocked") <= 1


def test_noise_from_somebody_with_the_key(peer: Peer, nodes: list[ClusterNode]) -> None:
    for node in nodes:
        for seed, name in enumerate((None, b"x", b"nobody..", b"x" * 200, process_id(NodeId(b"peer"), 3))):
            link = peer.link(node.address, name)
            link.set(zmq.LINGER, 5000)
            for parts in noise(seed):
                link.send_multipart(parts)
            link.close(5000)
            peer.links.remove(link)
        wait_for_log(node, "refused a message from", "no node manager")
        wait_for_log(node, "refused a message from", "no envelope")


def test_whole_messages_that_make_no_sense(peer: Peer, nodes: list[ClusterNode]) -> None:
    """From somebody with the key, who is no member: who else is, and who is dead, he cannot say."""
    head, other = nodes
    odd = [
        None,
        -1,
        2**62,
        "text",
        b"bytes",
        [],
        {},
        {"CPU": "many"},
        {"CPU": -1},
        [[1, 2], 3],
        [{"a": {"b": None}}],
    ]
    dead = rows(head)[other.node_id] | {"alive": False, "cause": "because"}
    for node in nodes:
        me, to = peer.me, process_id(NodeId(bytes.fromhex(node.node_id)), 0)
        stranger = process_id(NodeId(me[:4]), 7)
        worker = process_id(NodeId(to[:4]), 4_000_000)
        records = [m.NodesChanged([dead]), m.NodesChanged([dead | {"node": head.node_id}])]
        records += [m.NodesChanged(value) for value in odd]
        records += [m.NodeReport(value, value, value) for value in odd]
        records += [
            m.NodeReport({}, {"CPU": 10**12}, []),
            m.Goodbye("all of us", False),
            m.WatchProcess(worker),
        ]
        records += [m.ProcessDied(to, "{}", b"", 0), m.ProcessDied(stranger, "no json", b"x", -1)]
        records += [m.NodeDied(NodeId(to[:4]), "{}"), m.Register("driver", 1, None), m.ReturnLease(1)]
        records += [m.KillActor(bytes(to) + bytes(8), True, ""), m.WatchActor(bytes(to) + bytes(8))]  # type: ignore[arg-type]
        records += about_groups(odd, TaskId(me + bytes(8)), me)
        records += about_groups([{"bundles": [{"CPU": 1}]}], TaskId(to + bytes(8)), to)
        link = peer.link(node.address)
        link.send_multipart(pack_envelope(Envelope(GREETING, me, to, 0, 0), peer.address.encode()))
        number = 0
        for sender in (me, stranger):
            for record in records:
                number += 1
                link.send_multipart(
                    pack_envelope(Envelope(DATA, sender, to, number, 0), frame_of(encode(record)))
                )
        for frame in (b"", b"junk", frames.frame([])[:3], random.Random(1).randbytes(1000)):
            for receiver in (to, worker, process_id(NodeId(to[:4]), 1)):
                number += 1
                link.send_multipart(pack_envelope(Envelope(DATA, me, receiver, number, 0), frame))
        for envelope in (
            Envelope(DATA, process_id(NodeId(b"else"), 1), to, number + 1, 0),  # another node's process
            Envelope(DATA, me, process_id(NodeId(b"else"), 1), number + 1, 0),  # for another node
            Envelope(DATA, me, to, number + 100, 0),  # too early
            Envelope(DATA, me, to, 1, 0),  # it came already
            Envelope(ACK, me, to, 0, 2**63),  # it was never sent
        ):
            link.send_multipart(pack_envelope(envelope))
        link.send_multipart(pack_envelope(Envelope(GREETING, me, to, 0, 0), b"\xff nowhere"))
        peer.heard(
            lambda parts, last=number: int.from_bytes(parts[0][28:36], "little") == last
        )  # all was taken in
        wait_for_log(node, "of another node")
        wait_for_log(node, "never sent")
        assert {head.node_id, other.node_id} <= living(node)


def about_groups(values: list[Any], group: TaskId, lives_with: bytes) -> list[Any]:
    """What managers say of placement groups, to the head and from it."""
    said: list[Any] = [
        m.FollowGroup(group),
        m.RemoveGroup(1, group),
        m.FindGroup(1, "name", "space"),
        m.LifeEnded(1, lives_with),
        m.LifeEnded(1, b""),
        m.EndGroup(group),
        m.DropClaim(group),
        m.StateQuery(1, "groups"),
        m.StateQuery(1, "group no hex"),
        m.StateReply(1, None),
    ]
    for value in values:
        said += [
            m.MakeGroup(1, group, value, lives_with),
            m.BundlesPrepared(group, 1, True, value),
            m.RoomMade(value),
            m.PrepareBundles(group, 1, value),
            m.CommitBundles(group, value),
            m.ReturnBundles(group, value),
            m.ClaimRoom(group, value),
            m.GroupStands(group, 1, value, value),
        ]
    return said


def test_hellos_that_make_no_sense(peer: Peer, nodes: list[ClusterNode]) -> None:
    head, other = nodes
    link = peer.link(head.address)
    own = rows(head)[other.node_id]
    right = {
        "protocol": frames.VERSION,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "skate": "0",
        "node": "70656572",
        "address": peer.address,
    }
    for row in (
        None,
        7,
        {},
        own | {"node": "zz"},
        own | {"total": {"CPU": -1}},
        own | {"address": "nowhere", "node": "70656572"},
    ):
        link.send_multipart(pack_letter(HELLO, right | {"row": row}))
    for address in (None, 7, "nowhere", "x:99999", "127.0.0.1:1"):
        link.send_multipart(pack_letter(HELLO, {"protocol": 0, "address": address}))
    peer.heard(lambda parts: parts[0] == REFUSED)
    wait_for_log(head, "refused", "makes no sense")
    assert living(head) == {head.node_id, other.node_id}


def test_every_message_with_every_field_wrong(peer: Peer, nodes: list[ClusterNode]) -> None:
    """From the manager of a node that is no member, and from a process of it."""
    stranger = process_id(NodeId(peer.me[:4]), 7)
    for node in nodes:
        to = process_id(NodeId(bytes.fromhex(node.node_id)), 0)
        link = peer.link(node.address)
        link.send_multipart(pack_envelope(Envelope(GREETING, peer.me, to, 0, 0), peer.address.encode()))
        number = 0
        for sender in (peer.me, stranger):
            for message in forgeries(sender):
                number += 1
                frame = frame_of(encode(message))
                link.send_multipart(pack_envelope(Envelope(DATA, sender, to, number, 0), frame))
        peer.heard(lambda parts, last=number: int.from_bytes(parts[0][28:36], "little") == last)
        assert {each.node_id for each in nodes} <= living(node)


def test_answers_of_somebody_who_was_not_asked(peer: Peer, nodes: list[ClusterNode]) -> None:
    """Letters that would end a node, or have it follow another head: in nobody's name, in a member's, in the head's."""
    head, other = nodes
    mine = rows(head)[head.node_id] | {"node": peer.me[:4].hex(), "address": peer.address}
    dead = rows(head)[other.node_id] | {"alive": False, "cause": "because"}
    spoken = {
        "protocol": frames.VERSION,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "skate": "0",
        "former": [head.node_id],
        "returns": True,
    }
    letters = [pack_letter(REFUSED, {"why": "because"}), pack_letter(WELCOME, spoken | {"protocol": 0})]
    letters += [pack_letter(WELCOME, spoken | {"rows": table}) for table in ([], [mine], [mine, dead], 7)]
    letters += [addressed(letter, ask) for letter in letters for ask in ("", "x", "0" * 16)]
    for node in nodes:
        for name in (peer.me, *(process_id(NodeId(bytes.fromhex(each.node_id)), 0) for each in nodes)):
            link = peer.link(node.address, name)
            link.set(zmq.LINGER, 5000)
            for letter in letters:
                link.send_multipart(letter)
            link.close(5000)
            peer.links.remove(link)
            wait_for_log(node, "refused the letter 'refused'", name.hex())
            wait_for_log(node, "refused the letter 'welcome'", name.hex())
        assert living(node) == {head.node_id, other.node_id}
        assert [row["node"] for row in rows(node).values() if row["head"]] == [head.node_id]


class Anybody:
    """An actor that says in which process it lives."""

    def worker(self) -> str:
        return skate.get_runtime_context().get_worker_id()


def test_what_only_those_concerned_may_say(peer: Peer, nodes: list[ClusterNode]) -> None:
    """The node that has an actor in a worker ends it, its owner returns a lease, node managers place actors."""
    skate.init(address=nodes[0].session_dir, log_to_driver=False)
    there = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
    made = [skate.remote(Anybody).options(scheduling_strategy=each).remote() for each in there]
    homes = skate.get([actor.worker.remote() for actor in made], timeout=30)
    for node in nodes:
        to = process_id(NodeId(bytes.fromhex(node.node_id)), 0)
        stranger = process_id(NodeId(peer.me[:4]), 7)
        said: list[Any] = [m.EndWorker(ProcessId(bytes.fromhex(home)), "because") for home in homes]
        said += [m.ReturnLease((int.from_bytes(to[:4], "big") << 31) + number) for number in range(1, 20)]
        said += [m.ActorPlaced(actor._actor_id, b"", 0, None, "") for actor in made]
        link = peer.link(node.address)
        link.send_multipart(pack_envelope(Envelope(GREETING, peer.me, to, 0, 0), peer.address.encode()))
        number = 0
        for sender, words in ((peer.me, said[:-2]), (stranger, said)):
            for record in words:
                number += 1
                envelope = Envelope(DATA, sender, to, number, 0)
                link.send_multipart(pack_envelope(envelope, frame_of(encode(record))))
        peer.heard(lambda parts, last=number: int.from_bytes(parts[0][28:36], "little") == last)
        wait_for_log(node, "has no actor of that node's")
        wait_for_log(node, "is another owner's")
        wait_for_log(node, "only a node manager places actors")
    assert skate.get([actor.worker.remote() for actor in made], timeout=30) == homes
    skate.shutdown()

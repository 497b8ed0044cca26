"""How a node gets into a cluster, and a driver to a node that is in one: addresses and keys. No state."""

from __future__ import annotations

import os
import socket
from typing import Any

from skate.net import cluster_key
from skate.node import sessions
from skate.wire.cluster import join_address, parse_address

#: an address of nobody's (RFC 5737): the way there says which address of this machine others see
_ELSEWHERE = "198.51.100.1"


def cluster_config(
    *,
    head: str | None = None,
    node_ip: str | None = None,
    port: int = 0,
    key_file: str | None = None,
    insecure: bool = False,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a node manager needs to know to be in a cluster: its head where `head` is None, else with the head there.

    `state` says where a head writes down what it must know when it comes back: {"path": …, "fresh": …}, see
    node.state_file; None: nowhere.

    The key is in `key_file`, else in SKATE_CLUSTER_KEY or SKATE_CLUSTER_KEY_FILE. Without them a head makes one (in the
    file, if one is named that is not there), and a node of the same user on the head's machine finds the head's.
    Raises ValueError, OSError (PermissionError where others can read the file).
    """
    if head is not None:
        head = join_address(*parse_address(head))
    if not 0 <= port < 65536:
        raise ValueError(f"a port is 0 (any) to 65535, not {port}")
    if state is not None and head is not None:
        raise ValueError("--state-file and --fresh are for the head")
    if state is not None and state["path"] is not None:
        state = state | {"path": os.path.abspath(state["path"])}
    key_file = os.path.abspath(key_file) if key_file else None
    key, key_is_new = None, False
    if insecure:
        if key_file:
            raise ValueError("--insecure and a key exclude each other")
    elif head is None:
        if key_file and not os.path.exists(key_file):
            cluster_key.write_key(key_file, cluster_key.make_key())
        key = cluster_key.find_key(key_file)
        key_is_new = key is None
        key = key or cluster_key.make_key()
    else:
        key = cluster_key.find_key(key_file) or _key_of_local_head(head)
    config: dict[str, Any] = {
        "head": head,
        "host": node_ip or _own_address(parse_address(head)[0] if head else _ELSEWHERE),
        "port": port,
        "key": key,
        "key_file": key_file,
    }
    if state is not None:
        config["state"] = state | {"key_is_new": key_is_new, "host_is_given": node_ip is not None}
    return config


def _key_of_local_head(head: str) -> str:
    """The key of a cluster whose head runs here. ValueError where it does not."""
    for facts in sessions.open_to_drivers():
        if facts.get("key_file") and _is_head_of(facts, head):
            return cluster_key.read_key(facts["key_file"])
    raise ValueError(
        f"the cluster of {head} has a key: give it by --cluster-key-file, or the variable "
        f"{cluster_key.KEY_FILE_VARIABLE} or {cluster_key.KEY_VARIABLE}. It lies on the head's machine, where "
        "`skate start --head` said. (Only where that was started with --insecure: --insecure.)"
    )


def _own_address(toward: str) -> str:
    """The address of this machine that `toward` sees. Sends nothing."""
    try:
        family, kind, protocol, _, there = socket.getaddrinfo(toward, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return _some_address()  # there is no way there


def _some_address() -> str:
    """An address of a network that this machine is in, though it leads nowhere else."""
    import psutil  # seldom needed

    up = {name for name, status in psutil.net_if_stats().items() if status.isup}
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        for each in addresses:
            if name in up and each.family == socket.AF_INET and not _is_loopback(each.address):
                return str(each.address)
    return "127.0.0.1"


def node_in_cluster(head: str) -> str:
    """The folder of this machine's node in the cluster with the head at `head`; the head itself, if it runs here.

    ValueError for what is no address, ConnectionError where there is no such node.
    """
    try:
        parse_address(head)
    except ValueError as error:
        raise ValueError(
            f"init(address={head!r}): an address is 'auto', 'local', the HOST:PORT of a cluster's head, or what "
            f"`skate start` printed ({error})"
        ) from None
    found = [facts for facts in sessions.open_to_drivers() if _is_head_of(facts, head)]
    for facts in found:
        if facts["head"] == facts["address"]:
            return str(facts["folder"])
    if found:
        return str(found[-1]["folder"])
    raise ConnectionError(
        f"init(address={head!r}): no node of this user on this machine is in the cluster with that head. A program "
        f"comes in through a node of its own machine: start one here with `skate start --address {head}`."
    )


def _is_head_of(facts: dict[str, Any], head: str) -> bool:
    """Whether `head` is the address of the head of this node's cluster, perhaps by another name."""
    if not facts.get("head"):
        return False
    if facts["head"] == head:
        return True
    (known, known_port), (host, port) = parse_address(facts["head"]), parse_address(head)
    if known_port != port:
        return False
    there, here = _addresses(host), _addresses(known)
    return bool(there & here) or (facts["head"] == facts["address"] and any(map(_is_loopback, there)))


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"

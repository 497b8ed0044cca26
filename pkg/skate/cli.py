"""The command `skate`: starts and stops nodes that outlive programs, and shows what runs."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from skate import cli_tables
from skate.api.session import node_config
from skate.driver import nodes
from skate.driver.joining import cluster_config, node_in_cluster
from skate.net.cluster_key import KEY_FILE_VARIABLE, KEY_VARIABLE
from skate.node import sessions
from skate.node.state_file import forget_crashed

#: seconds that a node may take to end, before it is killed
STOP_SECONDS = 10.0

_EPILOG = """\
  skate start --head              the first node of a cluster; prints how others join it
  skate start --address HOST:PORT on each other machine
  skate status                    what is used, what waits
  skate stop                      ends the nodes of this machine

Exit status: 0 done, 1 failed (the reason is on standard error), 2 asked for what there is not.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status: 0 done, 1 failed, 2 asked for what there is not."""
    parser = argparse.ArgumentParser(
        prog="skate",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_start(commands)
    stop = commands.add_parser("stop", help="end all nodes of this user that `skate start` started here")
    stop.set_defaults(run=_stop)
    for name, run, text in (
        ("status", _status, "what the cluster has, what is used of it, what waits"),
        ("nodes", _nodes, "list the nodes, dead ones too"),
    ):
        shown = commands.add_parser(
            name,
            help=text,
            description=f"Shows {text}. Asks a node of this machine: the newest, unless --address says which.",
        )
        shown.add_argument(
            "--address",
            help="HOST:PORT of a cluster's head, or the folder of a node's session on this machine",
        )
        shown.add_argument("--json", action="store_true", help="as JSON, amounts in units of 1/10,000")
        shown.set_defaults(run=run)
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


def _add_start(commands: Any) -> None:
    start = commands.add_parser(
        "start",
        help="start a node",
        description="Starts a node on this machine. It goes on until `skate stop`; programs come by skate.init(). "
        "Nodes of one cluster share a key; what travels between them is encrypted, and who has not the key is not "
        "answered.",
    )
    where = start.add_mutually_exclusive_group(required=True)
    where.add_argument("--head", action="store_true", help="the first node, which others join")
    where.add_argument("--address", metavar="HOST:PORT", help="join the cluster whose head is there")
    start.add_argument(
        "--port", type=int, default=0, help="port that other nodes reach this one at; any free one by default"
    )
    start.add_argument(
        "--node-ip-address",
        metavar="IP",
        help="address that other nodes reach this one at; found out by default",
    )
    start.add_argument(
        "--cluster-key-file",
        metavar="FILE",
        help="the cluster's key, readable by its user alone. A head makes it, there if it is not there, else "
        f"beside its state file. Default: what {KEY_FILE_VARIABLE} names, or {KEY_VARIABLE} holds",
    )
    start.add_argument(
        "--insecure",
        action="store_true",
        help="no key: whoever can connect to the port can run programs as this user, on all nodes",
    )
    start.add_argument(
        "--state-file",
        metavar="FILE",
        help="where the head writes down what it must know when it comes back after a crash: nodes, names, detached "
        "actors. Started again with the same file, it takes up its cluster, also after `skate stop`. Default: one in "
        "the folder of this user's sessions, which `skate stop` removes",
    )
    start.add_argument(
        "--fresh",
        action="store_true",
        help="begin a new cluster, and drop what a head has left in its state file",
    )
    start.add_argument("--num-cpus", type=float, help="CPUs that tasks may use together; all by default")
    start.add_argument("--num-gpus", type=float, help="GPUs that tasks may use together; all by default")
    start.add_argument(
        "--resources", type=_json_object, metavar="JSON", help="custom ones: '{\"license\": 2}'"
    )
    start.add_argument("--labels", type=_json_object, metavar="JSON", help='labels: \'{"zone": "a"}\'')
    start.add_argument("--memory", type=float, help="bytes that tasks may ask for together")
    start.add_argument("--object-store-memory", type=int, help="size of the object store in bytes")
    start.add_argument("--block", action="store_true", help="return when the node ends")
    start.set_defaults(run=_start)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_json_object.__name__ = "JSON object"


def _start(chosen: argparse.Namespace) -> int:
    try:
        cluster = cluster_config(
            head=chosen.address,
            node_ip=chosen.node_ip_address,
            port=chosen.port,
            key_file=chosen.cluster_key_file,
            insecure=chosen.insecure,
            state=_state(chosen),
        )
        config = node_config(
            num_cpus=chosen.num_cpus,
            num_gpus=chosen.num_gpus,
            resources=chosen.resources,
            memory=chosen.memory,
            object_store_memory=chosen.object_store_memory,
            labels=chosen.labels,
            cluster=cluster,
            lives_with="nobody",
        )
        process, facts = nodes.start(config)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"skate start: {error}", file=sys.stderr)
        return 1
    print(
        f"A node runs, as process {facts['pid']}. Programs of this user come to it by skate.init(), or from anywhere by"
    )
    print(f"    skate.init(address={facts['folder']!r})")
    if chosen.head:
        if facts["takes_up"]:
            print(
                f"It takes up the cluster of {facts['state_file']}, whose nodes find it again by themselves."
            )
        print(_how_to_join(facts))
    else:
        print(f"It is in the cluster of {facts['head']}.")
    print("It ends by `skate stop`.")
    sys.stdout.flush()
    if chosen.block:
        return process.wait()
    process.returncode = 0  # it goes on by itself: nobody waits for it
    return 0


def _state(chosen: argparse.Namespace) -> dict[str, Any] | None:
    if chosen.head or chosen.state_file or chosen.fresh:
        return {"path": chosen.state_file, "fresh": chosen.fresh}
    return None


def _how_to_join(facts: dict[str, Any]) -> str:
    if facts["key_file"] is None:
        return (
            "Other machines join it by\n"
            f"    skate start --address {facts['address']} --insecure\n"
            "It has no key: whoever can connect there can run programs as this user."
        )
    return (
        "Other machines join it by\n"
        f"    skate start --address {facts['address']} --cluster-key-file FILE\n"
        f"where FILE is a copy of {facts['key_file']}, readable by its user alone."
    )


def _stop(chosen: argparse.Namespace) -> int:
    running = sessions.standing()
    failed = [facts for facts in running if not _end(facts)]
    print(f"{len(running) - len(failed)} of {len(running)} nodes were ended.")
    crashed = forget_crashed()
    if crashed:
        heads = "1 head that had crashed" if crashed == 1 else f"{crashed} heads that had crashed"
        print(f"What {heads} had left to come back to was removed.")
    sessions.sweep()
    return 1 if failed else 0


def _end(facts: dict[str, Any]) -> bool:
    """Ends a node, gently at first; whether it is gone."""
    try:
        pidfd = os.pidfd_open(facts["pid"])
    except ProcessLookupError:
        return True
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], STOP_SECONDS)[0]:
                return True
        return False
    finally:
        os.close(pidfd)


def _status(chosen: argparse.Namespace) -> int:
    def ask(folder: str) -> int:
        rows = nodes.ask_nodes(folder)
        try:
            waiting = nodes.ask_pending_groups(folder)
        except OSError as error:
            print(f"What waits for placement groups is not known: {error}", file=sys.stderr)
            waiting = []
        if chosen.json:
            groups = [dict(zip(("bundles", "strategy", "feasible"), group, strict=True)) for group in waiting]
            print(json.dumps({"nodes": rows, "pending_placement_groups": groups}))
        else:
            print(cli_tables.status(rows, waiting))
        return 0

    def nobody() -> int:
        print(
            "No node runs here that any program may come to. Start one: skate start --head", file=sys.stderr
        )
        return 1

    return _ask(chosen, ask, nobody)


def _nodes(chosen: argparse.Namespace) -> int:
    here = {facts["node"]: facts for facts in sessions.open_to_drivers()}

    def show(rows: list[dict[str, Any]]) -> int:
        rows = [here.get(row["node"], {}) | row for row in rows]
        print(json.dumps(rows) if chosen.json else cli_tables.nodes(rows))
        return 0

    return _ask(chosen, lambda folder: show(nodes.ask_nodes(folder)), lambda: show([]))


def _ask(chosen: argparse.Namespace, ask: Callable[[str], int], nobody: Callable[[], int]) -> int:
    """Has `ask` called with the folder of the node to ask: of the cluster that was named, else the newest. `nobody`
    is called where there is none. Gives the exit status."""
    try:
        if chosen.address is None:
            found = sessions.standing() or sessions.open_to_drivers()
            return ask(found[-1]["folder"]) if found else nobody()
        return ask(chosen.address if os.path.isabs(chosen.address) else node_in_cluster(chosen.address))
    except (OSError, ValueError) as error:
        print(f"skate: {error}", file=sys.stderr)
        return 1

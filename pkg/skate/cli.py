"""The command `skate`: starts and stops nodes that outlive programs, and shows what runs."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from skate.api.session import node_config
from skate.driver import nodes
from skate.node import sessions

#: seconds that a node may take to end, before it is killed
STOP_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status: 0 done, 1 failed, 2 asked for what there is not."""
    parser = argparse.ArgumentParser(prog="skate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    start = commands.add_parser(
        "start",
        help="start a node",
        description="Starts a node on this machine. It goes on until `skate stop`; programs come by skate.init().",
    )
    start.add_argument(
        "--head", action="store_true", required=True, help="the first node, which others would join"
    )
    start.add_argument("--num-cpus", type=float, help="CPUs that tasks may use together; all by default")
    start.add_argument("--num-gpus", type=float, help="GPUs that tasks may use together; all by default")
    start.add_argument(
        "--resources", type=json.loads, metavar="JSON", help="custom resources: '{\"license\": 2}'"
    )
    start.add_argument("--memory", type=float, help="bytes that tasks may ask for together")
    start.add_argument("--object-store-memory", type=int, help="size of the object store in bytes")
    start.add_argument("--block", action="store_true", help="return when the node ends")
    start.set_defaults(run=_start)
    stop = commands.add_parser("stop", help="end all nodes of this user that `skate start` started here")
    stop.set_defaults(run=_stop)
    nodes_parser = commands.add_parser("nodes", help="list them")
    nodes_parser.add_argument("--json", action="store_true", help="as JSON")
    nodes_parser.set_defaults(run=_nodes)
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


def _start(chosen: argparse.Namespace) -> int:
    try:
        config = node_config(
            num_cpus=chosen.num_cpus,
            num_gpus=chosen.num_gpus,
            resources=chosen.resources,
            memory=chosen.memory,
            object_store_memory=chosen.object_store_memory,
            stays=True,
        )
        process = nodes.spawn(config)
        facts = nodes.read_facts(process)
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"skate start: {error}", file=sys.stderr)
        return 1
    print(
        f"A node runs, as process {facts['pid']}. Programs of this user come to it by skate.init(), or from anywhere by"
    )
    print(f"    skate.init(address={facts['folder']!r})")
    print("It ends by `skate stop`.")
    sys.stdout.flush()
    if chosen.block:
        return process.wait()
    process.returncode = 0  # it goes on by itself: nobody waits for it
    return 0


def _stop(chosen: argparse.Namespace) -> int:
    running = sessions.standing()
    failed = [facts for facts in running if not _end(facts)]
    print(f"{len(running) - len(failed)} of {len(running)} nodes were ended.")
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


def _nodes(chosen: argparse.Namespace) -> int:
    running = sessions.standing()
    if chosen.json:
        print(json.dumps(running))
        return 0
    for facts in running:
        print(f"{facts['node']}  pid {facts['pid']}  {facts['folder']}")
    if not running:
        print("No node runs here that `skate start` started.")
    return 0

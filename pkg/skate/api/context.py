"""Where a program runs and what there is: the runtime context, the cluster's resources, its nodes, GPUs. No state."""

from __future__ import annotations

import json
import os
from typing import Any

from skate._c.resources import from_units
from skate.api.actor_handle import ActorHandle, ActorType
from skate.api.session import require_runtime
from skate.core.usage import sum_units
from skate.runtime import current
from skate.wire.cluster import parse_address


class RuntimeContext:
    """What this process is: ids are hexadecimal strings, None where there is none."""

    @property
    def namespace(self) -> str:
        return _facts().namespace

    def get_job_id(self) -> str:
        return _facts().job

    def get_node_id(self) -> str:
        return _facts().node.hex()

    def get_worker_id(self) -> str:
        return require_runtime().me.hex()

    def get_task_id(self) -> str | None:
        """The id of the running task; None in a driver."""
        pushed = self._pushed()
        return None if pushed is None else pushed.task.hex()

    def get_task_name(self) -> str | None:
        executor = _facts().executor
        return None if executor is None or executor.running_now() is None else executor.current_names()[0]

    def get_task_function_name(self) -> str | None:
        executor = _facts().executor
        return None if executor is None or executor.running_now() is None else executor.current_names()[1]

    def get_actor_id(self) -> str | None:
        """The id of the actor that this process is; None elsewhere."""
        actor = self._actor()
        return None if actor is None else actor.id.hex()

    def get_actor_name(self) -> str | None:
        """The name of the actor that this process is: empty where it has none; None elsewhere."""
        actor = self._actor()
        return None if actor is None else actor.name

    @property
    def current_actor(self) -> ActorHandle:
        """A handle of the actor that this process is, which does not keep it alive. RuntimeError elsewhere."""
        actor = self._actor()
        if actor is None:
            raise RuntimeError("current_actor: this process is no actor")
        return ActorHandle(actor.id, None, ActorType.from_about(actor.spec["about"]))

    def get_placement_group_id(self) -> str | None:
        """The id of the placement group in which the task or actor is; None elsewhere."""
        executor = _facts().executor
        return None if executor is None or executor.lease is None else executor.lease.group

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor that this process is has started again. False elsewhere."""
        actor = self._actor()
        return actor is not None and actor.restarts > 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task holds: {'CPU': 1.0}; empty in a driver."""
        executor = _facts().executor
        return {} if executor is None or executor.lease is None else executor.lease.assigned()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": [str(device) for device in get_gpu_ids()]}

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What tasks and actors inherit that are started here: {"env_vars": {...}}, or nothing."""
        variables = dict(_facts().variables)
        return {"env_vars": variables} if variables else {}

    def get_runtime_env_string(self) -> str:
        return json.dumps(self.runtime_env)

    @property
    def gcs_address(self) -> str:
        """HOST:PORT of the cluster's head; the node's id where it is in no cluster."""
        rows = require_runtime().query("nodes")
        return next((row["address"] for row in rows if row["head"]), require_runtime().node.hex())

    @property
    def worker_mode(self) -> str:
        return "driver" if _facts().executor is None else "worker"

    def get(self) -> dict[str, Any]:
        """All of it as a dict: ids by name, of what there is. (A driver has no task and no actor.)"""
        facts = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "worker_id": self.get_worker_id(),
            "namespace": self.namespace,
            "task_id": self.get_task_id(),
            "actor_id": self.get_actor_id(),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def _pushed(self) -> Any:
        executor = _facts().executor
        return None if executor is None else executor.running_now()

    def _actor(self) -> Any:
        executor = _facts().executor
        return None if executor is None else executor.actor


def _facts() -> current.Facts:
    require_runtime()
    assert current.facts is not None
    return current.facts


def get_runtime_context() -> RuntimeContext:
    """Who and where this process is."""
    require_runtime()
    return RuntimeContext()


def get_gpu_ids() -> list[Any]:
    """The GPUs that the running task may use: numbers, or strings where CUDA_VISIBLE_DEVICES names them so."""
    executor = _facts().executor
    if executor is None or executor.lease is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        ids = [item for item in visible.split(",") if item]
    else:
        ids = executor.lease.device_ids
    return [int(item) if item.isdigit() else item for item in ids]


def cluster_resources() -> dict[str, float]:
    """All resources of the nodes that live, by name."""
    return _sum("total")


def available_resources() -> dict[str, float]:
    """What is free now; what is used up is left out. Other nodes tell of changes every 0.1 s."""
    return _sum("available")


def _sum(what: str) -> dict[str, float]:
    units = sum_units((row for row in require_runtime().query("nodes") if row["alive"]), what)
    return {name: from_units(amount) for name, amount in units.items()}


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, dead ones too, each as a dict with Ray's keys."""
    return [
        {
            "NodeID": row["node"],
            "Alive": row["alive"],
            "NodeManagerAddress": parse_address(row["address"])[0] if row["address"] else "127.0.0.1",
            "NodeManagerHostname": row["hostname"],
            "NodeManagerPort": parse_address(row["address"])[1] if row["address"] else 0,
            "NodeName": row["hostname"],
            "DeathReasonMessage": row["cause"],
            "alive": row["alive"],
            "Resources": {name: from_units(amount) for name, amount in row["total"].items()}
            if row["alive"]
            else {},
            "Labels": dict(row["labels"]),
        }
        for row in require_runtime().query("nodes")
    ]

"""How does a cluster have one actor of a kind, whoever comes first?"""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

NAMESPACE = "llama31"


def open_actor(name: str, kind: type, *args: Any) -> ActorHandle[Any]:
    """The cluster's actor of that name, made with these arguments if there is none; Ray restarts it."""
    return (
        ray.remote(kind)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=1000,
            num_cpus=0,
        )
        .remote(*args)
    )


def find_actor(name: str) -> ActorHandle[Any] | None:
    """The cluster's actor of that name if there is one."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except (ValueError, RayError):
        return None

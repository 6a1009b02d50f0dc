"""Which placement groups did dead replicas leave behind, and who takes them away?

Serve (2.60) makes a detached group for every replica, names it as the replica's actor, and removes it when its
controller sees the replica end. It looks for left ones only when a controller starts: those that are left while none
runs, or that a lost controller had just made, hold their GPUs until then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table

SERVE_NAMESPACE = "serve"
# Source: ray.serve._private.common.ReplicaID.to_full_id_str.
_NAME = "SERVE_REPLICA::{application}#{deployment}#"


def groups_without_replica(
    groups: Mapping[str, str], replicas: Collection[str], application: str, deployment: str
) -> frozenset[str]:
    """Ids of the groups of this deployment that no living replica has; `groups` are id -> name."""
    prefix = _NAME.format(application=application, deployment=deployment)
    return frozenset(key for key, name in groups.items() if name.startswith(prefix) and name not in replicas)


class GroupSweeper:
    """Removes what two looks in a row found without a replica: Serve makes the group first, then its actor.

    Only groups of one deployment of one application are ever touched.
    """

    def __init__(self, application: str, deployment: str) -> None:
        self._names = (application, deployment)
        self._suspects: frozenset[str] = frozenset()

    def look(self) -> int:
        """Looks once; returns how many were removed. The cluster must be joined."""
        found = groups_without_replica(_live_groups(), _serve_actors(), *self._names)
        left = found & self._suspects
        for group_id in left:
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))
        self._suspects = found - left
        return len(left)

    @property
    def suspects(self) -> int:
        """How many the last look found that the next one would remove."""
        return len(self._suspects)


def _live_groups() -> dict[str, str]:
    table: dict[str, dict[str, Any]] = placement_group_table()
    return {key: entry["name"] for key, entry in table.items() if entry["state"] != "REMOVED"}


def _serve_actors() -> frozenset[str]:
    """Names of Serve's actors that live or are being started."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return frozenset(actor["name"] for actor in actors if actor["namespace"] == SERVE_NAMESPACE)

"""Where a Ray cluster has room for actors."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fmnist_search.execution.ray_settings import RaySettings

SUSPECT_SECONDS = 15.0
"""How long a node gets no actors after one was lost with it: Ray lists a node for some seconds after it has died."""
MAX_FAILED_STARTS = 3
"""How many actors in a row may end on a node before they are ready."""


@dataclass(frozen=True)
class NodeState:
    """A node that is alive: what it has, and what of that nobody uses. One that is draining will be taken away."""

    id: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    is_draining: bool = False


@dataclass
class ActorCounts:
    """Our actors by the id of their node; those that are `unplaced` were requested, and may take no resources yet."""

    placed: Counter[str] = field(default_factory=Counter)
    unplaced: Counter[str] = field(default_factory=Counter)


class Room:
    """Chooses nodes for actors, and remembers which nodes have none to offer."""

    def __init__(self, settings: RaySettings, clock: Callable[[], float] = time.monotonic):
        self._needed = settings.resources.by_name
        self._labels = settings.labels
        self._clock = clock
        self._suspected: dict[str, float] = {}
        self._failed_starts: Counter[str] = Counter()

    def suspect(self, node_id: str) -> None:
        """Leave out a node for some seconds."""
        self._suspected[node_id] = self._clock() + SUSPECT_SECONDS

    def note_start(self, node_id: str, *, succeeded: bool) -> bool:
        """Take note of how the start of an actor ended; return False if the node is left out from now on."""
        self._failed_starts[node_id] = 0 if succeeded else self._failed_starts[node_id] + 1
        return self._failed_starts[node_id] < MAX_FAILED_STARTS

    def leave_out(self, node_id: str) -> None:
        """Use a node no more."""
        self._failed_starts[node_id] = MAX_FAILED_STARTS

    def choose(self, nodes: Iterable[NodeState], actors: ActorCounts, limit: int | None) -> list[str]:
        """Return the ids of nodes for as many actors as fit now, at most `limit`; the emptiest nodes come first."""
        heap = [(-places, node.id) for node in nodes if (places := self._free_places(node, actors)) > 0]
        heapq.heapify(heap)
        chosen: list[str] = []
        while heap and (limit is None or len(chosen) < limit):
            places, node_id = heapq.heappop(heap)
            chosen.append(node_id)
            if places < -1:
                heapq.heappush(heap, (places + 1, node_id))
        return chosen

    def has_usable(self, nodes: Iterable[NodeState]) -> bool:
        """Return whether a node that was not left out could have an actor if it were idle."""
        return any(self._is_usable(node) and self._places_in(node.total) > 0 for node in nodes)

    def _is_usable(self, node: NodeState) -> bool:
        has_labels = all(node.labels.get(name) == value for name, value in self._labels.items())
        return has_labels and not node.is_draining and self._failed_starts[node.id] < MAX_FAILED_STARTS

    def _free_places(self, node: NodeState, actors: ActorCounts) -> int:
        if not self._is_usable(node) or self._suspected.get(node.id, 0.0) > self._clock():
            return 0
        unplaced = actors.unplaced[node.id]
        return min(
            self._places_in(node.available) - unplaced,
            self._places_in(node.total) - unplaced - actors.placed[node.id],
        )

    def _places_in(self, resources: Mapping[str, float]) -> int:
        return min(int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in self._needed.items())


def cluster_nodes() -> list[NodeState]:
    """Return the nodes of the cluster that this process is connected to."""
    import ray
    from ray._private.state import available_resources_per_node  # the public functions add up all nodes
    from ray._private.worker import global_worker

    available, draining = available_resources_per_node(), global_worker.gcs_client.get_draining_nodes()
    return [
        NodeState(name, node["Resources"], available[name], node.get("Labels", {}), name in draining)
        for node in ray.nodes()
        if node["Alive"] and (name := node["NodeID"]) in available
    ]

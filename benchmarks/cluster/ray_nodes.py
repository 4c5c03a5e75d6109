"""Ray clusters of several nodes on this machine, each node with one CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

NODE_ADDRESS = "127.0.0.2"
"""Ray takes 127.0.0.1 for the machine's own address in some places and not in others."""
OBJECT_STORE_BYTES = 150 * 2**20


class LocalCluster:
    """A cluster whose head has no CPU; nodes can join and be killed. Its methods must be called in the main thread."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "node_ip_address": NODE_ADDRESS, "object_store_memory": OBJECT_STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return str(self._cluster.address)

    def add_node(self) -> None:
        """Let a node of one CPU join."""
        node = self._cluster.add_node(
            num_cpus=1, node_ip_address=NODE_ADDRESS, object_store_memory=OBJECT_STORE_BYTES, wait=False
        )
        self.nodes.append(node)

    def kill_node(self, index: int) -> None:
        """Kill all processes of a node."""
        self._cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def shut_down(self) -> None:
        """End all processes of the cluster."""
        self._cluster.shutdown()


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[LocalCluster]:
    """Yield a cluster with so many nodes besides its head."""
    cluster = LocalCluster()
    try:
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.shut_down()

"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

NODE_ADDRESS = "127.0.0.2"
"""Ray takes 127.0.0.1 for the machine's own address in some places and not in others."""
OBJECT_STORE_BYTES = 100 * 2**20


@contextlib.contextmanager
def ray_cluster(nodes: int = 1, **node_arguments: Any) -> Iterator[Any]:
    """Yield a `ray.cluster_utils.Cluster` that this process is connected to, with nodes of one CPU.

    Its head has no CPUs, so that a test can end any node.
    """
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "node_ip_address": NODE_ADDRESS, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster, **node_arguments)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any, **arguments: Any) -> Any:
    """Add a node of one CPU and return it."""
    defaults = {"num_cpus": 1, "node_ip_address": NODE_ADDRESS, "object_store_memory": OBJECT_STORE_BYTES}
    return cluster.add_node(**{**defaults, **arguments})

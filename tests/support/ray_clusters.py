"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
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


class ClusterProcess:
    """A cluster in a process of its own, which a command can join without sharing the state of Ray with the tests."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self.address = self._answer()

    def add_node(self) -> str:
        """Add a node of one CPU and return its id."""
        return self._ask("add")

    def kill_node(self, node_id: str) -> None:
        """End a node without a warning."""
        self._ask(f"kill {node_id}")

    def _ask(self, request: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        answer = self._process.stdout.readline().strip()
        assert answer, "the process with the cluster has ended"
        return answer


@contextlib.contextmanager
def ray_cluster_process(**environment: str) -> Iterator[ClusterProcess]:
    """Yield a cluster that has a head without CPUs, and no other node."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield ClusterProcess(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(60)


def _serve_cluster() -> None:
    """Start a cluster, obey the lines of the standard input, and end the cluster with it."""
    from ray.cluster_utils import Cluster

    answers, sys.stdout = sys.stdout, sys.stderr  # Ray prints
    head = {"num_cpus": 0, "node_ip_address": NODE_ADDRESS, "object_store_memory": OBJECT_STORE_BYTES}
    cluster, nodes = Cluster(initialize_head=True, head_node_args=head), {}
    try:
        print(cluster.address, file=answers, flush=True)
        for line in sys.stdin:
            request, _, node_id = line.strip().partition(" ")
            if request == "add":
                node = add_node(cluster)
                node_id = node.node_id
                nodes[node_id] = node
            else:
                cluster.remove_node(nodes.pop(node_id), allow_graceful=False)
            print(node_id, file=answers, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    _serve_cluster()

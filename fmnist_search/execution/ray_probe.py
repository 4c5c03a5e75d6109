"""The look at a Ray cluster before it is used, in a process of its own: `python -m fmnist_search.execution.ray_probe`.

A wrong address or token lets Ray block for long and print many lines. This process reads a line of JSON from its
standard input, which `ray_cluster.probe` writes. It writes what it finds as lines of JSON, each with all that is known
so far. A signal ends it if Ray blocks.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from importlib import metadata
from typing import Any

CONNECT_SECONDS = 15
"""How long the head is waited for, the imports of Ray included."""
JOIN_SECONDS = 60
"""How long this machine's node and the nodes' answers are waited for."""
VERSION_SECONDS = 40.0
"""How long the versions of nodes are waited for; what does not answer is checked when a worker starts there."""

Answer = dict[str, Any]


def versions() -> dict[str, str | None]:
    """Return the versions of Python, torch and this package, without importing torch; None for what is not there."""
    try:
        from fmnist_search.version import VERSION
    except ImportError:
        package = None
    else:
        package = VERSION
    try:
        torch: str | None = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    return {"python": platform.python_version(), "torch": torch, "package": package}


def main() -> None:
    """Answer the request of the standard input."""
    request = json.loads(sys.stdin.read())
    answer: Answer = {}
    signal.alarm(CONNECT_SECONDS)
    if not _connect(request, answer):
        return
    signal.alarm(JOIN_SECONDS)
    _join(answer, request["checked"])


def _say(answer: Answer, **found: Any) -> None:
    answer.update(found)
    print(json.dumps(answer), flush=True)


def _connect(request: Answer, answer: Answer) -> bool:
    """Find the head, whether it asks for a token, and the nodes; return whether the cluster may be used."""
    _say(answer, stage="importing")
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        address = canonicalize_bootstrap_address_or_die(request["address"])
    except (ConnectionError, ValueError, OSError) as error:
        _say(answer, stage="not found", reason=str(error))
        return False
    _say(answer, stage="found", address=address)
    nodes = _list_nodes(address, "disabled")
    _say(answer, stage="reached", has_token_check=nodes is None)
    if nodes is not None and not request["allow_no_token"]:
        return False
    if nodes is None:
        nodes = _list_nodes(address, "token") if request["has_token"] else None
    if nodes is None:
        _say(answer, stage="refused")
        return False
    _say(answer, stage="connected", nodes=nodes)
    return True


def _list_nodes(address: str, mode: str) -> list[Answer] | None:
    """Return the nodes of a cluster that are alive; None if it does not let us in with this mode of authentication."""
    from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
    from ray.exceptions import AuthenticationError

    os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        infos = GcsClient(address=address).get_all_node_info(timeout=CONNECT_SECONDS)
    except AuthenticationError:
        return None
    return [
        {
            "id": info.node_id.hex(),
            "host": info.node_manager_hostname,
            "address": info.node_manager_address,
            "resources": dict(info.resources_total),
            "labels": dict(info.labels),
            "is_here": os.path.exists(info.raylet_socket_name),
        }
        for info in infos.values()
        if info.state == 0
    ]


def _join(answer: Answer, checked: Answer) -> None:
    """Ask the nodes that fulfil `checked` for their versions."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not any(node["is_here"] for node in answer["nodes"]):
        _say(answer, stage="elsewhere")
        return
    try:
        ray.init(answer["address"], log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        _say(answer, stage="not joined", reason=str(error))
        return
    task = ray.remote(num_cpus=0, max_retries=0)(versions)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["id"], soft=False)).remote(): node
        for node in answer["nodes"]
        if all(node["resources"].get(name, 0) >= amount for name, amount in checked.items())
    }
    ready, _ = ray.wait(list(asked), num_returns=max(len(asked), 1), timeout=VERSION_SECONDS) if asked else ([], [])
    for reference in ready:
        try:
            asked[reference]["versions"] = ray.get(reference)
        except ray.exceptions.RayError as error:
            asked[reference]["problem"] = str(error)
    _say(answer, stage="joined")
    ray.shutdown()


if __name__ == "__main__":
    main()

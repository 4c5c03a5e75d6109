"""The connection to a Ray cluster: whatever can be wrong with it is found before it is used, and is one line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_search.errors import UserError
from fmnist_search.execution.ray_probe import versions
from fmnist_search.execution.ray_settings import RaySettings

IMAGE_BYTES = 60_000 * (28 * 28 + 1)
"""Bytes of the images and labels of a dataset."""
PROBE_TIMEOUT_SECONDS = 90
CONNECTION_SECONDS = 5
ADDRESS_VARIABLE = "RAY_ADDRESS"
MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
DEFAULT_TOKEN_PATH = Path(".ray", "auth_token")


@dataclass(frozen=True)
class NodeInfo:
    """A node of a cluster that is alive.

    `versions` are those of Python, torch and this package there; empty if the node was not asked or has not answered.
    """

    id: str
    host: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)

    def fits(self, settings: RaySettings) -> bool:
        """Return whether a worker of these settings could run on the node if it were idle."""
        has_resources = all(
            self.resources.get(name, 0) >= amount for name, amount in settings.resources.by_name.items()
        )
        return has_resources and all(self.labels.get(name) == value for name, value in settings.labels.items())

    def __str__(self) -> str:
        """Return what the node has."""
        memory = self.resources.get("memory", 0) / 2**30
        parts = [f"{self.resources.get('CPU', 0):g} CPU", f"{self.resources.get('GPU', 0):g} GPU"]
        return ", ".join([*parts, f"{memory:.{0 if memory >= 10 else 1}f} GiB of memory"])


@dataclass(frozen=True)
class ClusterInfo:
    """A cluster that this process is connected to: the address of its head, and its nodes.

    `is_ours` says whether `connect` made the connection, and not the caller of the program.
    """

    address: str
    nodes: tuple[NodeInfo, ...]
    is_ours: bool = True


def connect(settings: RaySettings) -> ClusterInfo:
    """Connect this process to a cluster that can run workers of these settings.

    A process that is connected to a cluster stays so. Signal handlers stay as they are.

    Raises:
        UserError: if Ray is not installed; there is no cluster at the address, or it refuses us; it runs the code of
            everybody and the settings do not allow that; its nodes lack the resources, or have other versions.
    """
    check_installed()
    import ray

    if ray.is_initialized():
        nodes = tuple(
            NodeInfo(node["NodeID"], node["NodeManagerHostname"], node["Resources"], node.get("Labels", {}))
            for node in ray.nodes()
            if node["Alive"]
        )
        cluster = ClusterInfo(ray.get_runtime_context().gcs_address, nodes, is_ours=False)
        check_nodes(settings, cluster)
        return cluster
    answer = probe(settings)
    cluster = read_answer(settings, answer)
    with _unchanged_signal_handlers():
        _set_mode("token" if answer["has_token_check"] else "disabled")
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    # Ray would print on our standard output that an actor was killed: no option of `init` prevents that.
    ray._private.worker._worker_logs_enabled = False
    return cluster


def inspect(settings: RaySettings) -> ClusterInfo:
    """Return the cluster that `connect` would connect to, without doing so.

    Raises:
        UserError: if `connect` would raise it.
    """
    check_installed()
    return read_answer(settings, probe(settings))


def disconnect(cluster: ClusterInfo) -> None:
    """End the connection that `connect` has made."""
    if cluster.is_ours:
        import ray

        with _unchanged_signal_handlers():
            ray.shutdown()


def check_installed() -> None:
    """Check whether Ray is installed.

    Raises:
        UserError: if it is not.
    """
    try:
        is_installed = importlib.util.find_spec("ray") is not None
    except ValueError:  # a program has forbidden its import
        is_installed = False
    if not is_installed:
        raise UserError(
            "execution.backend: 'ray' needs a package that is not installed; pip install \"fmnist-search[ray]\""
        )


# ---------------------------------------------------------------------------------------------------- the probe


def probe(settings: RaySettings) -> dict[str, Any]:
    """Return what another process has found out about the cluster; see `ray_probe`.

    Raises:
        UserError: if the address is that of Ray Client.
    """
    address = settings.address
    if address == "auto" and (given := os.environ.get(ADDRESS_VARIABLE)):
        if given.startswith("ray://"):
            raise UserError(
                f"{ADDRESS_VARIABLE}: {given!r} is an address of Ray Client, which this search cannot use; set it to "
                "HOST:PORT of the head, or unset it"
            )
        address = given
    if address != "auto" and (reason := _connection_problem(address)):
        return {"address": address, "stage": "unreachable", "reason": reason}
    request = {
        "address": address,
        "allow_no_token": settings.allow_no_token,
        "has_token": has_token(),
        "checked": settings.resources.by_name,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", f"{__package__}.ray_probe"],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            timeout=PROBE_TIMEOUT_SECONDS,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {"stage": "importing"}
    return {"address": address, **answer}


def _connection_problem(address: str) -> str:
    """Return why nothing can be reached at an address; "" if something listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTION_SECONDS).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def has_token() -> bool:
    """Return whether this user has a token for clusters, in a variable or in the file where Ray keeps it."""
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or (Path.home() / DEFAULT_TOKEN_PATH).is_file()


def read_answer(settings: RaySettings, answer: Mapping[str, Any]) -> ClusterInfo:
    """Return the cluster of an answer of the probe.

    Raises:
        UserError: if the cluster cannot be used.
    """
    address, reason = answer["address"], answer.get("reason", "").partition("\n")[0]
    is_from_environment = settings.address == "auto" and os.environ.get(ADDRESS_VARIABLE)
    key = ADDRESS_VARIABLE if is_from_environment else "execution.ray.address"
    match answer["stage"]:
        case "not found":
            raise UserError(
                f"{key}: {settings.address!r} finds no Ray cluster on this machine; start one with `ray start --head`, "
                "or give the HOST:PORT of one"
            )
        case "unreachable":
            raise UserError(f"{key}: nothing answers at {address} ({reason}); check the address, or `ray start --head`")
        case "importing" | "found":
            raise UserError(f"{key}: no Ray cluster answers at {address}; check the address and the port of its head")
        case "reached" if not answer["has_token_check"]:
            raise UserError(
                f"{key}: the cluster at {address} asks for no token, so it runs the code of everybody who reaches its "
                "ports; stop it, create a token (`ray get-auth-token --generate`), start it with RAY_AUTH_MODE=token, "
                "or accept that with execution.ray.allow_no_token = true"
            )
        case "refused" | "reached":
            remedy = "copy the file ~/.ray/auth_token of its head here, or set RAY_AUTH_TOKEN_PATH"
            what = "refuses the token of this user" if has_token() else "asks for a token, and this user has none"
            raise UserError(f"{key}: the cluster at {address} {what}; {remedy}")
        case "elsewhere":
            raise UserError(
                f"{key}: this machine is no node of the cluster at {address}; run `ray start --address={address} "
                "--num-cpus=0` here (it then trains nothing), or start the search on a node"
            )
        case "connected" | "not joined":
            what = reason or "its node on this machine does not answer"
            raise UserError(f"{key}: the cluster at {address} cannot be joined ({what}); see `ray status`")
    nodes = tuple(
        NodeInfo(node["id"], node["host"], node["resources"], node["labels"], node.get("versions", {}))
        for node in answer["nodes"]
    )
    cluster = ClusterInfo(address, nodes)
    check_nodes(settings, cluster)
    return cluster


# ------------------------------------------------------------------------------------------------------ its nodes


def check_nodes(settings: RaySettings, cluster: ClusterInfo) -> None:
    """Check whether workers of these settings can run on the nodes.

    Raises:
        UserError: if none has the resources and labels, the memory for the images, or the versions of this process.
    """
    fitting = [node for node in cluster.nodes if node.fits(settings)]
    if not fitting:
        labels = f" and the labels {dict(settings.labels)}" if settings.labels else ""
        raise UserError(
            f"execution.ray.resources: no node of the cluster at {cluster.address} has {settings.resources}{labels}; "
            f"it has {describe_nodes(cluster.nodes)}; ask for less, or add a node"
        )
    for node in fitting:
        store = node.resources.get("object_store_memory", 0)
        if store < IMAGE_BYTES:
            raise UserError(
                f"execution.ray: the object store of node {node.host} has {store / 1e6:.0f} MB, and the images need "
                f"{IMAGE_BYTES / 1e6:.0f} MB; start the node with a larger --object-store-memory"
            )
        if difference := version_difference(node.versions):
            raise UserError(f"execution.ray: node {node.host} ({node.id[:8]}) has {difference}")


def version_difference(there: Mapping[str, str | None]) -> str:
    """Return how the versions of a node differ from those of this process, with the remedy; "" if they do not.

    `there` is what `ray_probe.versions` returns, or nothing if it is not known.
    """
    here = versions()
    names = {"python": "Python", "torch": "torch", "package": "fmnist-search"}
    for key, name in names.items():
        if key in there and _comparable(key, there[key]) != _comparable(key, here[key]):
            found = f"{name} {there[key]}" if there[key] else f"no {name}"
            return f"{found}, and this search {here[key]}; install {name} {here[key]} there"
    return ""


def _comparable(key: str, version: str | None) -> str | None:
    """Return the part of a version that has to be equal: builds of torch differ with the device."""
    if version is None:
        return None
    return ".".join(version.split(".")[:2]) if key == "python" else version.partition("+")[0]


def describe_nodes(nodes: Sequence[NodeInfo]) -> str:
    """Return what nodes have, alike ones together."""
    counts = Counter(map(str, nodes)).most_common(3)
    return "; ".join(f"{count} node{'s' * (count > 1)} with {what}" for what, count in counts) or "no nodes"


# --------------------------------------------------------------------------------------------------- this process


def _set_mode(mode: str) -> None:
    """Let this process use tokens or not: Ray reads the variable when it is imported, and not for every address."""
    from ray._raylet import AuthenticationTokenLoader, Config

    os.environ[MODE_VARIABLE] = mode
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _unchanged_signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)

"""What can be wrong with a Ray cluster is one line with the field, the value and the remedy."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from fmnist_search.errors import UserError
from fmnist_search.execution.ray_cluster import NodeInfo, probe, read_answer, version_difference
from fmnist_search.execution.ray_probe import versions
from fmnist_search.execution.ray_settings import RayResources, RaySettings

GIB = 2**30


def node(cpu: float = 4, gpu: float = 0, *, store: float = GIB, **found: Any) -> dict[str, Any]:
    """Return a node as the probe describes it."""
    resources = {"CPU": cpu, "GPU": gpu, "memory": 8.0 * GIB, "object_store_memory": store}
    described = {"id": "ab" * 28, "host": "node-1", "resources": resources, "labels": {}, "versions": versions()}
    return described | found


def joined(*nodes: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the probe about a cluster that works."""
    return {"stage": "joined", "address": "10.0.0.1:6379", "has_token_check": True, "nodes": list(nodes)}


def problem(answer: dict[str, Any], settings: RaySettings = RaySettings()) -> str:  # noqa: B008
    """Return the only line of the error about an answer of the probe."""
    with pytest.raises(UserError) as caught:
        read_answer(settings, {"address": "10.0.0.1:6379", **answer})
    (line,) = caught.value.lines
    assert "\n" not in line
    return line


def test_a_cluster_with_the_resources_asked_for_is_used() -> None:
    settings = RaySettings(resources=RayResources(cpu=2, gpu=0.5), labels={"zone": "a"})
    cluster = read_answer(settings, joined(node(cpu=0, labels={"zone": "a"}), node(gpu=1, labels={"zone": "a"})))
    assert [found.fits(settings) for found in cluster.nodes] == [False, True]


def test_a_cluster_without_the_resources_says_what_it_has() -> None:
    line = problem(joined(node(), node(), node(cpu=2)), RaySettings(resources=RayResources(gpu=1, memory=GIB)))
    assert (
        "no node of the cluster at 10.0.0.1:6379 has 1 CPU, 1 GPU, 1.0 GiB of memory; it has 2 nodes with 4 CPU, 0 GPU"
        in line
    )
    assert "1 node with 2 CPU" in line
    assert line.startswith("execution.ray.resources: ")
    assert line.endswith("ask for less, or add a node")


def test_a_cluster_without_a_label_is_refused() -> None:
    assert "the labels {'zone': 'b'}" in problem(joined(node(labels={"zone": "a"})), RaySettings(labels={"zone": "b"}))


def test_memory_that_no_single_node_has_is_refused() -> None:
    line = problem(joined(node(), node()), RaySettings(resources=RayResources(memory=9 * GIB)))
    assert "9.0 GiB of memory; it has 2 nodes with" in line


def test_an_object_store_that_cannot_hold_the_images_is_refused() -> None:
    line = problem(joined(node(store=30e6)))
    assert "the object store of node node-1 has 30 MB, and the images need 47 MB" in line
    assert "--object-store-memory" in line


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        ({"python": "3.9.1"}, "has Python 3.9.1, and this search "),
        ({"torch": "1.13.0"}, "has torch 1.13.0, and this search "),
        ({"torch": None}, "has no torch, and this search "),
        ({"package": "0.0.1"}, "has fmnist-search 0.0.1, and this search "),
        ({"package": None}, "has no fmnist-search, and this search "),
    ],
)
def test_a_node_with_other_versions_is_refused(different: dict[str, str | None], expected: str) -> None:
    line = problem(joined(node(), node(versions={**versions(), **different})))
    assert line.startswith(f"execution.ray: node node-1 (abababab) {expected}")
    assert "; install " in line


def test_versions_that_run_together_are_no_difference() -> None:
    here = versions()
    assert version_difference({}) == ""
    assert version_difference({**here, "torch": f"{here['torch']}+cu128"}) == ""
    # A node that no worker fits on needs no torch.
    read_answer(RaySettings(), joined(node(cpu=0, versions={**here, "torch": None}), node()))


@pytest.mark.parametrize(
    ("answer", "expected", "remedy"),
    [
        ({"stage": "not found"}, "'auto' finds no Ray cluster on this machine", "`ray start --head`"),
        ({"stage": "importing"}, "no Ray cluster answers at 10.0.0.1:6379", "the port of its head"),
        ({"stage": "reached", "has_token_check": False}, "asks for no token", "execution.ray.allow_no_token = true"),
        ({"stage": "elsewhere"}, "this machine is no node of the cluster", "`ray start --address=10.0.0.1:6379"),
        ({"stage": "connected"}, "its node on this machine does not answer", "`ray status`"),
        ({"stage": "not joined", "reason": "Version mismatch: 2.1\nmore"}, "(Version mismatch: 2.1)", "`ray status`"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(answer: dict[str, Any], expected: str, remedy: str) -> None:
    line = problem(answer)
    assert line.startswith("execution.ray.address: ")
    assert line.index(expected) < line.index(remedy)


def test_a_token_that_is_missing_or_wrong_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    refused = {"stage": "refused", "has_token_check": True}
    assert "asks for a token, and this user has none; copy the file ~/.ray/auth_token" in problem(refused)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    assert "refuses the token of this user; copy the file ~/.ray/auth_token" in problem(refused)


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = RaySettings(f"127.0.0.1:{port}")
    assert f"nothing answers at 127.0.0.1:{port} (Connection refused)" in problem(probe(settings), settings)


def test_an_address_of_ray_client_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match="RAY_ADDRESS: 'ray://head:10001' is an address of Ray Client"):
        probe(RaySettings())


def test_without_ray_the_error_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from fmnist_search.execution.ray_cluster import connect\n"
        "from fmnist_search.execution.ray_settings import RaySettings\n"
        "try: connect(RaySettings())\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith('pip install "fmnist-search[ray]"')


def test_a_node_is_described_by_what_workers_need() -> None:
    assert (
        str(NodeInfo("id", "host", {"CPU": 2.0, "GPU": 1.0, "memory": 3.0 * GIB})) == "2 CPU, 1 GPU, 3.0 GiB of memory"
    )

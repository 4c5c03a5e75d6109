"""A study on a Ray cluster, as a user runs it: nodes leave and join, and nothing is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak.invariants import check_study
from benchmarks.soak.stores import read_runs, read_trials
from fmnist_search.results.training import TrialState
from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import link_image_cache, start_command, start_python
from tests.integration.reliability.stores import MLFLOW, OPTUNA, assert_whole, query, wait_until
from tests.support.pages import page_example
from tests.support.postgresql import postgresql_server
from tests.support.ray_clusters import ClusterProcess, ray_cluster_process

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TOKEN = "5" * 64
TRIALS = 5
STUDY = f"""
name = "nodes"

[data]
train_images = 1000
validation = 500

[budget]
trials = {TRIALS}
epochs = 2

[pruner]
startup_trials = 3

[space.common]
batch_size = 100
optimizer.learning_rate = {{ low = 3e-3, high = 3e-2, log = true }}

[space.cnn]
depth = 2
width_1 = [8, 16]
width_2 = 16

[finalists]
recipes = 1
seeds = 1
epochs = 1
images = "slice"
refit = "none"

[execution]
precision = "float32"
threads = 1
checkpoint_seconds = 0

[execution.ray]
resources = {{ memory = 0 }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    """A cluster whose nodes have a family of the user's own."""
    module = tmp_path_factory.mktemp("node") / "networks_of_the_nodes.py"
    module.write_text(page_example("extending.md", "python", "separable"))
    changes = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "FMNIST_SEARCH_PLUGINS": str(module)}
    with ray_cluster_process(**changes) as started:
        yield started


def start_search(folder: Path, cluster: ClusterProcess, *arguments: object) -> subprocess.Popen[str]:
    """Start the search of the study on the cluster."""
    (folder / "nodes.toml").write_text(STUDY)
    address = f"execution.ray.address={cluster.address}"
    settings = ["search", "nodes.toml", "--backend", "ray", "--set", address]
    return start_command(folder, *settings, *arguments, RAY_AUTH_TOKEN=TOKEN)


def places(folder: Path, kind: str) -> list[str]:
    """Return the nodes on which trainings have ended, as their runs name them."""
    tags = [run.tags for run in read_runs(folder / MLFLOW) if run.tags.get("kind") == kind]
    assert all(tag["device_name"] for tag in tags)
    found = [re.fullmatch(r"\d+ on \S+ \(node ([0-9a-f]{8})\)", tag["worker"]) for tag in tags]
    return [match[1] for match in found if match]


def test_a_study_outlives_its_nodes_and_uses_one_that_joins(cluster: ClusterProcess, tmp_path: Path) -> None:
    nodes = [cluster.add_node() for _ in range(3)]
    search = start_search(tmp_path, cluster)
    wait_until(lambda: query(tmp_path / OPTUNA, "SELECT 1 FROM trial_intermediate_values"), search, 300)
    cluster.kill_node(nodes[0])
    joined = cluster.add_node()
    for node in nodes[1:]:  # so that the search has to go on on the node that joined
        cluster.kill_node(node)
    _, messages = search.communicate(timeout=300)
    assert search.returncode == 0, messages
    assert f"nodes: runs on the Ray cluster at {cluster.address}, " in messages
    assert_whole(tmp_path, TRIALS, "nodes")
    study_store = StudyStore.load(f"sqlite:///{tmp_path / OPTUNA}", "nodes")
    assert not [record for record in study_store.trial_records() if record.state is TrialState.FAILED]
    assert 1 <= study_store.worker_losses <= len(nodes)
    assert study_store.champion is not None
    used = places(tmp_path, "trial")
    assert len(used) == TRIALS
    assert joined[:8] in [*used, *places(tmp_path, "finalist")]


def test_mlflow_run_searches_a_family_of_ones_own_on_ray_and_stores_the_study_in_postgresql(
    cluster: ClusterProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "my_networks.py").write_text(page_example("extending.md", "python", "separable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(link_image_cache(tmp_path / "cache")))  # plugins are remembered there
    cluster_table = f'[execution.ray]\naddress = "{cluster.address}"'
    smaller = STUDY.replace("[execution.ray]", cluster_table).replace("recipes = 1", "recipes = 0")
    own = '[plugins]\nmodules = ["my_networks.py"]\n\n[space.separable]\nwidth = [8, 16]\n'
    network = smaller[smaller.index("[space.cnn]") : smaller.index("[finalists]")]
    (clone / "nodes.toml").write_text(smaller.replace(network, own))
    with postgresql_server() as server:
        url = server.create_database()
        parameters = {"study": "nodes.toml", "backend": "ray", "trials": 2, "storage": url}
        words = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        arguments = ["-m", "mlflow", "run", ".", *words, "--env-manager", "local"]
        done = start_python(clone, *arguments, PATH=path, RAY_AUTH_TOKEN=TOKEN)
        _, messages = done.communicate(timeout=300)
        assert done.returncode == 0, messages
        trials, records = read_trials(url, "nodes"), StudyStore.load(url, "nodes").trial_records()
    runs = [run for run in read_runs(clone / MLFLOW) if run.tags.get("study") == "nodes"]
    found = check_study(trials, records, runs, 2)
    assert [invariant for invariant in found if not invariant.holds] == []
    assert len(places(clone, "trial")) == 2
    assert {record.recipe.model.family for record in records} == {"separable"}

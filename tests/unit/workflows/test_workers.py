"""Workers start before this process has imported a large library."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest

from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import WORKER_MEMORY_BYTES
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.devices import may_have_gpu, resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.study.workers import execution_request, ray_settings, start_workers
from tests.support.studies import make_study

# None in sys.modules makes an import fail.
SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(["torch", "mlflow", "optuna", "numpy"]))
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.process_backend import ProcessBackend
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.study import api
config = StudyConfig.from_dict({
    "name": "early", "budget": {"trials": 1}, "space": {"cnn": {"depth": [1, 2]}},
    "execution": {"device": "cpu", "workers": 1},
})
started = []
api.start_workers(config, StudyCallback(), lambda *arguments: started.append(arguments))
print(*started[0])
"""


def test_workers_on_the_cpu_start_without_large_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == f"{Execution(device='cpu', threads=1)} 1\n", done.stderr


def test_a_study_reports_workers_that_do_not_fit() -> None:
    class Messages(StudyCallback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    messages: list[str] = []
    config = make_study(execution={"workers": 1_024, "device": "cpu"})
    sizes: list[int] = []
    start_workers(config, Messages(), lambda _, size: sizes.append(size))  # type: ignore[arg-type, return-value]
    assert sizes[0] < 1_024
    assert messages[0].startswith(f"{config.name}: execution.workers: 1024 with ")


def test_the_study_chooses_threads_or_processes_for_its_workers() -> None:
    kinds = {}
    for kind in ("auto", "threads", "processes"):
        config = make_study(execution={"device": "cpu", "workers": 1, "backend": kind})
        with start_workers(config, StudyCallback()) as backend:
            kinds[kind] = type(backend).__name__
    assert kinds == {"auto": "ThreadBackend", "threads": "ThreadBackend", "processes": "ProcessBackend"}


@pytest.mark.parametrize(
    ("execution", "threads"),
    [
        ({}, 1),
        ({"backend": "ray"}, 1),
        ({"backend": "ray", "ray": {"resources": {"cpu": 3}}}, 3),
        ({"backend": "ray", "ray": {"resources": {"cpu": 4}, "streams": 2}}, 2),
        ({"backend": "ray", "ray": {"resources": {"cpu": 0.5}}}, 1),
        ({"backend": "ray", "threads": 2, "ray": {"resources": {"cpu": 4}}}, 2),
    ],
)
def test_a_trial_has_the_processors_that_its_worker_reserves_for_it(execution: dict[str, object], threads: int) -> None:
    request = execution_request(make_study(execution=execution))
    assert isinstance(request, partial)
    assert request.args == ("auto", threads, "plain")


def test_the_settings_of_a_cluster_are_those_of_the_study_file() -> None:
    ray = {"address": "head:6379", "resources": {"gpu": 1, "memory": "4GiB"}, "streams": 2, "allow_no_token": True}
    settings = ray_settings(make_study(execution={"backend": "ray", "ray": ray}))
    assert settings == RaySettings("head:6379", RayResources(1, 1, 4 * 2**30), 2, {}, True)
    assert ray_settings(make_study(execution={"backend": "ray"})) == RaySettings(
        resources=RayResources(memory=WORKER_MEMORY_BYTES)
    )


def test_devices_are_resolved_without_torch_as_with_it() -> None:
    if may_have_gpu():
        pytest.skip("only torch can tell whether there is a GPU")
    assert resolve_execution(threads=1) == resolve_execution("cpu", threads=1) == Execution(device="cpu", threads=1)
    assert resolve_execution("cpu").threads > 0
    with pytest.raises(UserError, match="engine: 'graph'"):
        resolve_execution("auto", 1, "graph")
    with pytest.raises(UserError, match="device: 'cuda' cannot be used here"):
        resolve_execution("cuda", 1)

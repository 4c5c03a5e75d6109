"""Workers start before this process has imported a large library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.devices import may_have_gpu, resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.study.workers import start_workers
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


def test_devices_are_resolved_without_torch_as_with_it() -> None:
    if may_have_gpu():
        pytest.skip("only torch can tell whether there is a GPU")
    assert resolve_execution(threads=1) == resolve_execution("cpu", threads=1) == Execution(device="cpu", threads=1)
    assert resolve_execution("cpu").threads > 0
    with pytest.raises(UserError, match="engine: 'graph'"):
        resolve_execution("auto", 1, "graph")
    with pytest.raises(UserError, match="device: 'cuda' cannot be used here"):
        resolve_execution("cuda", 1)

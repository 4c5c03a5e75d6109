"""What is needed to use a stored training again: its weights as a classifier, and how it was executed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.execution import Execution
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import TrainedRun, check_artifact
from fmnist_search.training.checkpoint import classifier_from_weights, state_from_bytes
from fmnist_search.training.devices import resolve_execution

WEIGHTS_FILE = "weights.pt"
"""The artifact that holds the weights of a single training."""


def load_stored_classifier(mlflow_store: MlflowStore, run: TrainedRun, trial_weights: Path | None) -> Classifier:
    """Return the network of a run with its stored weights, in evaluation mode on the CPU.

    A single training keeps its weights as an artifact of its run; those of a trial that completed are in the file
    `trial_weights`, if there is one.

    Raises:
        UserError: if no weights are stored, or they are not those that were logged, damaged, or of another network.
    """
    content = _read_weights(mlflow_store, run.run_id)
    if content is None and trial_weights is not None:
        content = trial_weights.read_bytes()
    if content is None:
        raise UserError(
            f"run {run.run_id!r}: no weights of it are stored here; train it again with `fmnist-search train "
            f"--from-run {run.run_id}` and give that run"
        )
    name = f"run {run.run_id!r}: its stored weights"
    return classifier_from_weights(run.recipe, state_from_bytes(content, name), name)


def _read_weights(mlflow_store: MlflowStore, run_id: str) -> bytes | None:
    if not any(item.path == WEIGHTS_FILE for item in mlflow_store.client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        content = Path(mlflow_store.client.download_artifacts(run_id, WEIGHTS_FILE, folder)).read_bytes()
    if run := mlflow_store.find_run(run_id):
        check_artifact(run, WEIGHTS_FILE, content, tag_names.WEIGHTS_DIGEST)
    return content


def execution_from_environment(environment: Mapping[str, Any], run_id: str) -> Execution:
    """Return how a run was executed, from the record of its environment. A missing field takes its default.

    Raises:
        UserError: if this machine cannot execute it like that.
    """
    fields = {field.name for field in dataclasses.fields(Execution)}
    execution = Execution(**{name: value for name, value in environment.items() if name in fields})
    try:
        resolve_execution(execution.device, engine=execution.engine)
    except UserError:
        raise UserError(
            f"run {run_id!r}: was trained on {execution.device!r} with the {execution.engine} engine, which is not "
            "available here; train it on a machine that has it"
        ) from None
    return execution

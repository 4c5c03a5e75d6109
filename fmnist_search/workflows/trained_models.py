"""Models that predict: registered ones, those of a training's run, and files of weights, all by one address.

A registered model has an MLflow address, a run its id, and a file of weights its path; the recipe that a training wrote
lies beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.files import content_digest
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.evaluation import TestScore, load_classifier
from fmnist_search.registry.packaging import DEFAULT_MODEL, LoadedModel, model_from_classifier
from fmnist_search.registry.versions import test_result_from_tags
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.connection import current_tracking_uri, store_errors
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import StoredRun, read_run
from fmnist_search.tracking.training_run_logger import RECIPE_FILE
from fmnist_search.training.checkpoint import classifier_from_weights, state_from_bytes
from fmnist_search.workflows.lookup import load_run_classifier
from fmnist_search.workflows.testing import (
    TestEvaluation,
    check_may_be_tested,
    evaluate_on_test_set,
    evaluate_version,
    evaluation_tags,
    metrics_of_test,
)
from fmnist_search.workspace import Workspace

WEIGHTS_SUFFIX = ".pt"


def is_training(address: str) -> bool:
    """Return whether an address is the id of a run or a file of weights, not that of a registered model."""
    return is_file(address) or re.fullmatch("[0-9a-f]{32}", address) is not None


def is_file(address: str) -> bool:
    """Return whether an address is the path of a file of weights."""
    return address.endswith(WEIGHTS_SUFFIX)


def load_model(uri: str = DEFAULT_MODEL, tracking_uri: str | None = None, *, trust: bool = False) -> LoadedModel:
    """Load a model by its address, by default the champion.

    The address is that of a registered model, such as `models:/fmnist-search/1`; the id of the run of a training or a
    trial; or a file of weights such as `out/weights.pt`, with the `recipe.toml` of its training beside it. Of weights
    only plain tensors are read. Of registered models only files that this program wrote are loaded: their digests must
    be those that the version was registered with. With `trust`, MLflow loads any model, also one that is not
    registered, and runs the code that its files contain or name.

    Raises:
        UserError: if there is no such model, it is not trusted, or weights are not stored or not those of the recipe.
    """
    if not is_training(uri):
        return load_classifier(uri, tracking_uri, trust=trust)
    if is_file(uri):
        recipe, classifier = _read_weights(Path(uri), _read_file(Path(uri)))
    else:
        workspace = Workspace.resolve(tracking_uri or current_tracking_uri())
        with store_errors(workspace.tracking_uri):
            recipe, classifier = _load_run(uri, workspace, MlflowStore(workspace.tracking_uri, "fmnist-search"))
    return model_from_classifier(uri, classifier, recipe.data.dataset)


def evaluate(address: str, workspace: Workspace, *, again: bool = False, trust: bool = False) -> TestScore:
    """Return the recorded test accuracy of a model; without a record, or `again`, evaluate it and record that.

    The record is in the version of a registered model, or in the run of a training. A file of weights whose run is not
    in the store is evaluated without a record.

    Raises:
        UserError: if there is no such model, it is not trusted, it is a trial or a finalist of a study, or the test
            images are missing.
    """
    store, source = MlflowStore(workspace.tracking_uri, "fmnist-search"), DataSource.from_workspace(workspace)
    if not is_training(address):
        return evaluate_version(store, address, source, again=again, trust=trust)
    with store_errors(workspace.tracking_uri):
        content = _read_file(Path(address)) if is_file(address) else None
        if content is None:
            run = store.find_run(address)
        else:
            run = store.find_run_with_tag(tag_names.WEIGHTS_DIGEST, content_digest(content))
        if run:
            check_may_be_tested("evaluate", run.run_id, run.tags.get(tag_names.KIND))
        known = test_result_from_tags(run.tags) if run else None
        if known and not again:
            return TestScore(address, *known)
        if content is None:
            recipe, classifier = _load_run(address, workspace, store)
        else:
            recipe, classifier = _read_weights(Path(address), content)
        evaluation = evaluate_on_test_set(classifier, recipe.data.dataset, source)
        count = (known[1] if known else 0) + 1
        if run:
            _record(store, run, evaluation, count)
    return TestScore(address, evaluation.accuracy, count)


def _record(store: MlflowStore, run: StoredRun, evaluation: TestEvaluation, count: int) -> None:
    """Write an evaluation to the run of a training; metrics are those of the first one, as those of `train --test`."""
    accuracy = evaluation.accuracy
    store.set_tags(run.run_id, {**evaluation_tags(accuracy), tags.TEST_EVALUATIONS: str(count)})
    for key, value in metrics_of_test(accuracy).items():
        if key not in run.metrics:
            store.client.log_metric(run.run_id, key, value)


def _load_run(run_id: str, workspace: Workspace, store: MlflowStore) -> tuple[Recipe, Classifier]:
    run = read_run(store, run_id)
    return run.recipe, load_run_classifier(workspace, store, run)


def _read_weights(path: Path, content: bytes) -> tuple[Recipe, Classifier]:
    """Return the network of a file of weights, with the recipe that lies beside it."""
    weights = state_from_bytes(content, str(path))
    recipe_path = path.with_name(RECIPE_FILE)
    try:
        text = recipe_path.read_text()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"model {str(path)!r}: {recipe_path}, the recipe of these weights, cannot be read; copy the one that "
            "`fmnist-search train --output FOLDER` wrote beside them"
        ) from None
    try:
        recipe = recipe_from_toml(text)
    except ValueError as error:
        raise UserError(f"{recipe_path}: {error}; copy the one that was written with the weights") from None
    return recipe, classifier_from_weights(recipe, weights, str(path))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"model {str(path)!r}: cannot be read ({error.strerror}); give a file that `fmnist-search "
            "train --output FOLDER` wrote"
        ) from None

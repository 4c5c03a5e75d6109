"""The registration of a model: one test, its model card, its version, and the decision on its alias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.files import content_digest
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.aliases import decide_alias, decided_card
from fmnist_search.registry.champion_rule import ValidationScore, pack_bits
from fmnist_search.registry.packaging import log_model, weights_digest
from fmnist_search.registry.register import (
    UNDECIDED_NOTE,
    check_model_name,
    delete_orphans,
    pending_tags,
    probe_registration,
    register_version,
)
from fmnist_search.registry.study_versions import study_versions
from fmnist_search.registry.verification import digests_to_tag
from fmnist_search.registry.versions import find_identical, read_test_result
from fmnist_search.reporting.model_card import ModelCard, Selection
from fmnist_search.results.training import Accuracy
from fmnist_search.tracking.connection import permission_errors
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_artifacts import log_evaluation_plots
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.testing import TestEvaluation, evaluate_on_test_set, evaluation_tags, log_test_metrics


@dataclass(frozen=True)
class Candidate:
    """A model to be registered: its classifier with the recipes of its members, its score and its selection.

    `tags` are further tags of its version.
    """

    classifier: Classifier | Ensemble
    recipes: tuple[Recipe, ...]
    classes: Sequence[str]
    validation_score: ValidationScore
    selection: Selection
    tags: Mapping[str, str]


@dataclass(frozen=True)
class RegisteredVersion:
    """The version of a candidate, its accuracy on the test images, and the decision on its alias with the reason."""

    model: str
    version: str
    alias: str
    verdict: str
    test: Accuracy

    @property
    def address(self) -> str:
        """The MLflow address of the version."""
        return f"models:/{self.model}/{self.version}"


def check_registration(mlflow_store: MlflowStore, name: str) -> None:
    """Check that the user may register a model under this name, before anything is trained for it.

    Raises:
        UserError: if the name is taken by another program, or the user lacks the permission.
    """
    with permission_errors(
        f"finalists.model_name: {name!r}",
        "ask the owner of the registered model for the permission EDIT, or choose another name (--model-name, or --set "
        "finalists.model_name=NAME)",
    ):
        check_model_name(mlflow_store.client, name)
        probe_registration(mlflow_store.client, name)


def prepare_name(mlflow_store: MlflowStore, name: str, experiment_id: str) -> None:
    """Check that a model can be registered under this name, and delete what interrupted registrations left.

    Raises:
        UserError: if the name is taken by another program, or the user lacks the permission.
    """
    check_registration(mlflow_store, name)
    delete_orphans(mlflow_store.client, name, experiment_id)


def register(
    mlflow_store: MlflowStore,
    name: str,
    candidate: Candidate,
    run: RunLogger,
    context: JobContext,
    source: DataSource,
    retry_command: str,
) -> RegisteredVersion:
    """Evaluate a candidate on the test images, log that to its run, register a version, and decide its alias.

    A candidate that is registered under the name already is not registered again; its version is returned.
    `retry_command` is the command that repeats this.

    Raises:
        UserError: if the test images are missing, MLflow is unreachable, or it rejected the run.
    """
    client, dataset = mlflow_store.client, candidate.recipes[0].data.dataset
    digest = weights_digest(candidate.classifier, candidate.recipes)
    if identical := find_identical(client, name, digest):
        context.callback.on_message(
            f"{name} version {identical.version} has the same weights and recipes; it is not registered again"
        )
        return _decided(mlflow_store, name, str(identical.version))
    tested = evaluate_on_test_set(candidate.classifier, dataset, source)
    model_card = _model_card(name, candidate, tested.accuracy)
    card = model_card.to_markdown()
    _log_test_evaluation(run, candidate, tested, card, plots=context.plots)
    run_id = _flushed_run_id(run, context, retry_command)
    model = log_model(client, candidate.classifier, run_id, dataset, pending_tags(name))
    version_tags = {
        **_version_tags(candidate, tested),
        tags.WEIGHTS: digest,
        tags.FILE_DIGESTS: digests_to_tag(model.digests),
    }
    version = register_version(client, name, model.uri, run_id, version_tags, model_card.to_description())
    decision = decide_alias(client, name, version)
    is_champion = decision.alias == tags.CHAMPION
    comparison = str(client.get_model_version(name, version).tags[tags.COMPARISON])
    run.log_text(tags.MODEL_CARD_FILE, decided_card(card, name, version, comparison, is_champion=is_champion))
    return RegisteredVersion(name, version, decision.alias, decision.reason, tested.accuracy)


def finish_registration(mlflow_store: MlflowStore, study: str, name: str, promotion: str) -> RegisteredVersion | None:
    """Return the version that the promotion with this key has registered under the name, decided; None without one.

    Its promotion may have ended at any time after it was created.
    """
    client = mlflow_store.client
    registered = [v for v in study_versions(client, study) if (v.model, v.promotion) == (name, promotion)]
    if not registered:
        return None
    return _decided(mlflow_store, name, str(registered[0].number))


def _decided(mlflow_store: MlflowStore, name: str, number: str) -> RegisteredVersion:
    """Return a version that exists, once it is decided."""
    client = mlflow_store.client
    tested = read_test_result(client.get_model_version(name, number))
    assert tested, "a version is created with its test result"
    decision = decide_alias(client, name, number)
    return RegisteredVersion(name, number, decision.alias, decision.reason, tested[0])


def _log_test_evaluation(
    run: RunLogger, candidate: Candidate, test_evaluation: TestEvaluation, card: str, *, plots: bool
) -> None:
    test, correctness = test_evaluation.accuracy, candidate.validation_score.correctness
    log_test_metrics(run, test)  # a promotion that was killed may have logged the same
    if correctness:
        run.log_text(tags.CORRECTNESS_FILE, correctness.to_json())
    run.log_text(tags.MODEL_CARD_FILE, card)
    run.log_text(tags.TEST_CORRECT_FILE, pack_bits(test_evaluation.correct))
    title = f"{candidate.recipes[0].label}: {test.value:.2%} of {test.images:,} test images"
    if plots:
        images = test_evaluation.images
        log_evaluation_plots(run, test_evaluation.probabilities, images, candidate.classes, "test", title)


def _flushed_run_id(run: RunLogger, context: JobContext, retry_command: str) -> str:
    """Return the id of a run once MLflow has received all of its events.

    Raises:
        UserError: if MLflow is unreachable, or rejected the run.
    """
    if not context.flush():
        raise UserError(
            f"no model was registered, since MLflow lacks events of its run: {context.sender.problem}; once that is "
            f"over, run `{retry_command}`"
        )
    if run.run_id is None:
        raise UserError(f"MLflow has rejected the run {run.run_key}; see `fmnist-search sync`, then `{retry_command}`")
    return run.run_id


def _version_tags(candidate: Candidate, test_evaluation: TestEvaluation) -> dict[str, str]:
    score, correct = candidate.validation_score, pack_bits(test_evaluation.correct).encode()
    is_selected = tags.SELECTED_ON_VALIDATION in candidate.tags
    return {
        tags.ACCURACY_TEST: tags.accuracy_tag(test_evaluation.accuracy),
        tags.ACCURACY_VALIDATION if is_selected else tags.ACCURACY_CONFIRMED: score.in_percent,
        **candidate.tags,
        tags.NETWORK: candidate.recipes[0].label,
        tags.DATASET: candidate.recipes[0].data.dataset,
        tags.MEMBERS: "; ".join(f"{recipe.label} seed {recipe.seed}" for recipe in candidate.recipes),
        **tags.score_tags(score),
        **evaluation_tags(test_evaluation.accuracy),
        tags.TEST_CORRECT_DIGEST: content_digest(correct),
    }


def _model_card(name: str, candidate: Candidate, test: Accuracy) -> ModelCard:
    score = candidate.validation_score
    return ModelCard(
        model=name,
        recipes=candidate.recipes,
        selection=candidate.selection,
        test=test,
        validation_images=score.images,
        dataset_digest=score.dataset_digest,
        split_digest=score.split_digest,
        comparison=UNDECIDED_NOTE,
    )

"""A chosen model's way into the registry: tested once, with its card and its record, registered, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.aliases import decide_alias
from fmnist_search.registry.champion_rule import ValidationScore, pack_bits
from fmnist_search.registry.packaging import log_model
from fmnist_search.registry.register import (
    UNDECIDED_NOTE,
    check_model_name,
    delete_orphans,
    pending_tags,
    register_version,
)
from fmnist_search.reporting.model_card import ModelCard, Selection
from fmnist_search.results.training import Accuracy
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_artifacts import log_evaluation_plots
from fmnist_search.workflows.jobs import JobContext, flush_tracking
from fmnist_search.workflows.study.finalists import TestEvaluation, evaluate_on_test_set


@dataclass(frozen=True)
class Candidate:
    """A model that is to be registered: its network with the recipes of its members, and what is known of it.

    `validation_score` are those on validation images, with their record image by image; `tags` are what its version
    says of itself beside them.
    """

    classifier: Classifier | Ensemble
    recipes: tuple[Recipe, ...]
    classes: Sequence[str]
    validation_score: ValidationScore
    selection: Selection
    tags: Mapping[str, str]


@dataclass(frozen=True)
class RegisteredVersion:
    """The version that a candidate has become, its accuracy on the test images, and what came of the comparison."""

    model: str
    version: str
    alias: str
    verdict: str
    test: Accuracy


def prepare_name(mlflow_store: MlflowStore, name: str, experiment_id: str) -> None:
    """See that a model can be registered under that name, and clear away what died on its way there.

    Raises:
        UserError: the name is taken.
    """
    check_model_name(mlflow_store.client, name)
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
    """Test a candidate once, put that on record in its run, register it from there, and decide who is champion.

    `retry_command` is the command that does all this again. Call it in the main thread, as `log_model` asks.

    Raises:
        UserError: no whole copy of the test images, MLflow is out of reach, or it has refused the run.
    """
    tested = evaluate_on_test_set(candidate.classifier, candidate.recipes[0].data.dataset, source)
    card = _model_card(name, candidate, tested.accuracy).to_markdown()
    _log_test_evaluation(run, candidate, tested, card)
    run_id = _flushed_run_id(run, context, retry_command)
    uri = log_model(candidate.classifier, run_id, candidate.recipes[0].data.dataset, pending_tags(name))
    version = register_version(mlflow_store.client, name, uri, run_id, _version_tags(candidate, tested), card)
    claim = decide_alias(mlflow_store.client, name, version)
    return RegisteredVersion(name, version, claim.alias, claim.reason, tested.accuracy)


def _log_test_evaluation(run: RunLogger, candidate: Candidate, test_evaluation: TestEvaluation, card: str) -> None:
    """What the version's run keeps: it stands there before the version does."""
    test, hits = test_evaluation.accuracy, candidate.validation_score.correctness
    run.log_metrics(
        {
            metric_names.TEST_ACCURACY: test.value,
            metric_names.TEST_ACCURACY_LOW: test.low,
            metric_names.TEST_ACCURACY_HIGH: test.high,
        }
    )
    if hits:
        run.log_text(tags.CORRECTNESS_FILE, hits.to_json())
    run.log_text(tags.MODEL_CARD_FILE, card)
    title = f"{candidate.recipes[0].label}: {test.value:.2%} of {test.images:,} test images"
    log_evaluation_plots(run, test_evaluation.probabilities, test_evaluation.images, candidate.classes, "test", title)


def _flushed_run_id(run: RunLogger, context: JobContext, retry_command: str) -> str:
    """The id of a run once MLflow has everything of it.

    Raises:
        UserError: MLflow is out of reach, or has refused the run.
    """
    if not flush_tracking(context):
        raise UserError(f"no model can be registered while MLflow is out of reach; start it, then `{retry_command}`")
    if run.run_id is None:
        raise UserError(f"MLflow has refused the run {run.run_key}; see `fmnist-search sync`, then `{retry_command}`")
    return run.run_id


def _version_tags(candidate: Candidate, test_evaluation: TestEvaluation) -> dict[str, str]:
    return {
        **candidate.tags,
        tags.NETWORK: candidate.recipes[0].label,
        tags.DATASET: candidate.recipes[0].data.dataset,
        tags.MEMBERS: "; ".join(f"{recipe.label} seed {recipe.seed}" for recipe in candidate.recipes),
        **tags.score_tags(candidate.validation_score),
        tags.TEST_HITS: str(test_evaluation.accuracy.hits),
        tags.TEST_IMAGES: str(test_evaluation.accuracy.images),
        tags.TEST_EVALUATIONS: "1",
        tags.TEST_CORRECT: pack_bits(test_evaluation.correct),
    }


def _model_card(name: str, candidate: Candidate, test: Accuracy) -> ModelCard:
    figures = candidate.validation_score
    return ModelCard(
        model=name,
        recipes=candidate.recipes,
        selection=candidate.selection,
        test=test,
        validation_images=figures.images,
        dataset_digest=figures.dataset_digest,
        split_digest=figures.split_digest,
        comparison=UNDECIDED_NOTE,
    )

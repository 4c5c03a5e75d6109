"""The registration of a single training's weights as a version of a model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from torch import Tensor

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.champion_rule import CorrectnessRecord, ValidationScore
from fmnist_search.reporting.model_card import selection_from_training
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import predict_logits
from fmnist_search.workflows.jobs import JobContext, TrackedJob
from fmnist_search.workflows.registration import Candidate, RegisteredVersion, prepare_name, register
from fmnist_search.workflows.settings import RunOptions
from fmnist_search.workflows.testing import check_test_set


def check_registrable(store: MlflowStore, recipe: Recipe, options: RunOptions, source: DataSource) -> None:
    """Check that the weights of a training can be registered, before it begins; do nothing if they shall not be.

    Raises:
        UserError: if no images are held back, the test images are missing, or the name is not for this user.
    """
    if not options.register:
        return
    if not recipe.data.validation:
        raise UserError(
            "--register: a version is compared by its validation accuracy, and data.validation = 0 holds no images "
            "back; set data.validation"
        )
    check_test_set(recipe.data.dataset, source)
    prepare_name(store, registered_name(recipe, options), store.experiment_id)


def registered_name(recipe: Recipe, options: RunOptions) -> str:
    """Return the name of the registered model, by default that of the promoted models of the dataset."""
    return options.model_name or Finalists().for_dataset(recipe.data.dataset).model_name


def register_training(
    store: MlflowStore,
    job: TrackedJob,
    weights: Mapping[str, Tensor],
    options: RunOptions,
    context: JobContext,
    source: DataSource,
) -> RegisteredVersion:
    """Evaluate the kept weights of a completed training on the test images, and register them.

    Raises:
        UserError: see `registration.register`.
    """
    recipe, images = job.recipe, job.images
    classifier = classifier_from_weights(recipe, weights)
    logits = predict_logits(classifier.to(images.validation.pixels.device), images.validation.pixels)
    right = (logits.argmax(1) == images.validation.labels).cpu().numpy()
    record = CorrectnessRecord(right[None], images.digest, images.split_digest)
    name = registered_name(recipe, options)
    candidate = Candidate(
        classifier=classifier.to("cpu"),
        recipes=(recipe,),
        classes=images.classes,
        validation_score=ValidationScore.of_one(record),
        selection=selection_from_training(str(job.run.run_id), record.accuracies[0]),
        tags={
            tags.ENSEMBLE: "0",
            tags.SELECTED_ON_VALIDATION: "by the best epoch of the training",
            tags.MEMBER_RUNS: str(job.run.run_id),
        },
    )
    retry = ["fmnist-search", "train", "--from-run", job.run.run_key, "--register", "--model-name", name]
    return register(store, name, candidate, job.run, context, source, shlex.join(retry))

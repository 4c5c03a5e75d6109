"""Evaluations on the test images, and their records. Each is one look at the test images, and counted as such."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import LabelledImages
from fmnist_search.data.loading import read_test_set
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.datasets import get_dataset
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.evaluation import TestScore, evaluate_model
from fmnist_search.reporting.tables import class_scores_csv
from fmnist_search.results.statistics import wilson
from fmnist_search.results.training import Accuracy, TestResult
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_artifacts import log_evaluation_plots
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import confusion_matrix, mean_cross_entropy, predict_logits


@dataclass(frozen=True)
class TestEvaluation:
    """An evaluation on the test images: the probabilities (N, classes) of each image."""

    __test__ = False  # not a class of tests, though pytest would take it for one by its name

    probabilities: Tensor
    images: LabelledImages

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Which images (N,) were classified correctly."""
        correct: npt.NDArray[np.bool_] = (self.probabilities.argmax(1) == self.images.labels).numpy()
        return correct

    @property
    def accuracy(self) -> Accuracy:
        """The share of correctly classified images with its interval, and the loss."""
        loss = mean_cross_entropy(self.probabilities, self.images.labels)
        return wilson(int(self.correct.sum()), len(self.images), loss)


def evaluate_on_test_set(classifier: Classifier | Ensemble, dataset: str, source: DataSource) -> TestEvaluation:
    """Evaluate a model on the test images in float32 on the CPU, as the exported model computes.

    Raises:
        UserError: if the test images are missing.
    """
    return evaluate_each_on_test_set([classifier], dataset, source)[0]


def evaluate_each_on_test_set(
    classifiers: Sequence[Classifier | Ensemble], dataset: str, source: DataSource
) -> list[TestEvaluation]:
    """Evaluate several models as `evaluate_on_test_set` does, with images that are read once."""
    images = read_test_set(dataset, source)
    logits = (predict_logits(classifier.eval(), images.pixels) for classifier in classifiers)
    return [TestEvaluation(each.softmax(1), images) for each in logits]


def evaluate_version(store: MlflowStore, uri: str, source: DataSource, *, again: bool, trust: bool) -> TestScore:
    """Return the test accuracy of a registered model, see `registry.evaluation.evaluate_model`."""
    return evaluate_model(store.client, uri, partial(read_test_set, source=source), again=again, trust=trust)


def check_test_set(dataset: str, source: DataSource) -> None:
    """Check that the test images are there, before anything is trained for them.

    Raises:
        UserError: if they are missing.
    """
    read_test_set(dataset, source)


def check_may_be_tested(
    command: str, run_id: str, kind: str | None, remedy: str = "the best with `fmnist-search promote`"
) -> None:
    """Check that a run is neither a trial nor a finalist: the test images must not judge what a study compares.

    Raises:
        UserError: if it is; the message begins with the command, and says to register `remedy`.
    """
    if kind in (tag_names.TRIAL_RUN, tag_names.FINALIST_RUN):
        raise UserError(
            f"{command}: run {run_id!r} is a {kind} of a study, which the test images must not judge; register "
            f"{remedy}, which tests it once"
        )


def record_test(
    run: RunLogger, recipe: Recipe, weights: Mapping[str, Tensor], source: DataSource, *, plots: bool
) -> TestResult:
    """Evaluate the weights of a training on the test images, and record that in its run.

    Raises:
        UserError: if the test images are missing.
    """
    evaluation = evaluate_on_test_set(classifier_from_weights(recipe, weights), recipe.data.dataset, source)
    return record_evaluation(run, recipe.label, recipe.data.dataset, evaluation, plots=plots)


def record_evaluation(
    run: RunLogger, label: str, dataset: str, evaluation: TestEvaluation, *, plots: bool
) -> TestResult:
    """Record the first evaluation of a model on the test images in its run, where `label` names the model."""
    classes = get_dataset(dataset).classes
    confusion = confusion_matrix(evaluation.probabilities, evaluation.images.labels)
    result = TestResult(evaluation.accuracy, classes, confusion)
    log_test_metrics(run, result.accuracy)
    run.set_tags(evaluation_tags(result.accuracy))
    run.log_text("test/class_scores.csv", class_scores_csv(result.confusion, classes))
    if plots:
        title = f"{label}: {result.accuracy.value:.2%} of {result.accuracy.images:,} test images"
        log_evaluation_plots(run, evaluation.probabilities, evaluation.images, classes, "test", title)
    else:
        matrix = {"classes": list(classes), "rows_true_columns_predicted": result.confusion}
        run.log_text("test/confusion_matrix.json", json.dumps(matrix))
    return result


def log_test_metrics(run: RunLogger, test: Accuracy) -> None:
    """Log accuracy, its interval and loss on the test images, unless the run has them."""
    run.log_metrics(metrics_of_test(test), only_new=True)


def metrics_of_test(test: Accuracy) -> dict[str, float]:
    """Return accuracy, its interval and loss on the test images, as the metrics of a run."""
    values = {
        metric_names.TEST_ACCURACY: test.value,
        metric_names.TEST_ACCURACY_LOW: test.low,
        metric_names.TEST_ACCURACY_HIGH: test.high,
    }
    return values | ({metric_names.TEST_LOSS: test.loss} if test.loss is not None else {})


def evaluation_tags(test: Accuracy) -> dict[str, str]:
    """Return the tags of a version or a run that record its first evaluation on the test images."""
    return {
        tags.TEST_HITS: str(test.correct),
        tags.TEST_IMAGE_COUNT: str(test.images),
        **({tags.TEST_LOSS: repr(test.loss)} if test.loss is not None else {}),
        tags.TEST_EVALUATIONS: "1",
    }

"""Registered models on the test images: every evaluation is recorded, and two models are compared image by image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.types import Schema, TensorSpec

from fmnist_search.data.images import LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.registry import tags
from fmnist_search.registry.champion_rule import pack_bits
from fmnist_search.registry.packaging import LoadedModel, load_model, read_dataset_name
from fmnist_search.registry.versions import (
    get_version,
    read_correct_images,
    read_test_result,
    record_correct_images,
    record_test_evaluation,
)
from fmnist_search.results.statistics import mcnemar, wilson
from fmnist_search.results.training import Accuracy
from fmnist_search.training.evaluation import mean_cross_entropy

LOSS_METRIC = "test/loss"
"""The metric of the run that a version comes from; `tracking.metric_names` has it too, which is not below."""
SIGNIFICANCE_LEVEL = 0.05
"""Two models differ if the p-value of their comparison is not larger than this."""

BoolArray = npt.NDArray[np.bool_]

TestSetReader = Callable[[str], LabelledImages]
"""Returns the test images of a dataset by its name; called when a model is to be evaluated on them."""


def load_classifier(uri: str, tracking_uri: str | None = None, *, trust: bool = False) -> LoadedModel:
    """Load a model as `load_model` does, and check that it maps images (N, 28, 28) to probabilities (N, classes).

    Raises:
        UserError: if there is no such model, it is not trusted, or its signature is another.
    """
    model = load_model(uri, tracking_uri, trust=trust)
    signature = model.signature
    inputs, outputs = (
        (_tensor_specs(side) for side in (signature.inputs, signature.outputs)) if signature else (None, None)
    )
    expected = [("float32", (-1, IMAGE_SIZE, IMAGE_SIZE))], [("float32", (-1, len(model.classes)))]
    if (inputs, outputs) != expected:
        found = f"takes {_format_specs(inputs)} and gives {_format_specs(outputs)}" if signature else "has no signature"
        raise UserError(
            f"model {uri!r}: {found}; a model of {model.dataset} takes float32 (-1, {IMAGE_SIZE}, {IMAGE_SIZE}) "
            f"and gives float32 (-1, {len(model.classes)})"
        )
    return model


def _tensor_specs(schema: Schema | None) -> list[tuple[str, tuple[int, ...]]] | None:
    """Return types and shapes of the tensors of a signature; None if it consists of columns."""
    tensors = [spec for spec in schema or [] if isinstance(spec, TensorSpec)]
    return [(str(spec.type), tuple(spec.shape)) for spec in tensors] or None


def _format_specs(tensors: list[tuple[str, tuple[int, ...]]] | None) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in tensors) if tensors else "no tensors"


# ---------------------------------------------------------------------------------- one model


@dataclass(frozen=True)
class TestScore:
    """The accuracy of a version on the test images, and how often it was evaluated on them."""

    __test__ = False  # not a class of tests, though pytest would take it for one by its name

    model: str
    accuracy: Accuracy
    evaluations: int


def evaluate_model(
    client: MlflowClient, uri: str, read_test_images: TestSetReader, *, again: bool = False, trust: bool = False
) -> TestScore:
    """Return the recorded test accuracy of a version; without a record, or `again`, evaluate it and record that.

    Raises:
        UserError: if there is no such model, or it is not a classifier of this package.
    """
    version = get_version(client, uri)
    known = None if again else read_test_result(version)
    return TestScore(uri, *known) if known else _evaluate_version(client, uri, version, read_test_images, trust)[0]


def _evaluate_version(
    client: MlflowClient, uri: str, version: ModelVersion, read_test_images: TestSetReader, trust: bool
) -> tuple[TestScore, BoolArray]:
    model = load_classifier(_version_uri(version), client.tracking_uri, trust=trust)
    images = read_test_images(model.dataset)
    probabilities = model.probabilities(images.pixels)
    correct: BoolArray = probabilities.argmax(1) == images.labels.numpy()
    loss = mean_cross_entropy(torch.from_numpy(probabilities), images.labels)
    accuracy = wilson(int(correct.sum()), len(images), loss)
    evaluations = record_test_evaluation(client, version, accuracy)
    if version.run_id:
        with contextlib.suppress(MlflowException):  # the run of a version may be deleted
            client.log_metric(version.run_id, LOSS_METRIC, loss)
    record_correct_images(client, version, pack_bits(correct))
    return TestScore(uri, accuracy, evaluations), correct


def _version_uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


# --------------------------------------------------------------------------------- two models


@dataclass(frozen=True)
class ModelComparison:
    """Two versions on the same test images: the number that both classify correctly, only one, and neither.

    `p_value` is that of McNemar's exact two-sided test.
    """

    first: TestScore
    second: TestScore
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def better(self) -> TestScore | None:
        """The version that is significantly better; None if the difference is not significant."""
        if self.p_value > SIGNIFICANCE_LEVEL:
            return None
        return self.first if self.only_first > self.only_second else self.second


def compare_models(
    client: MlflowClient,
    first: str,
    second: str,
    read_test_images: TestSetReader,
    *,
    again: bool = False,
    trust: bool = False,
) -> ModelComparison:
    """Compare two versions image by image. A version without a record, or both if `again`, are evaluated first.

    Raises:
        UserError: if one does not exist or is not a classifier of this package, or both are the same version or of
            different datasets.
    """
    versions = [get_version(client, uri) for uri in (first, second)]
    one, other = map(_version_uri, versions)
    if one == other:
        raise UserError(f"evaluate: {first!r} and {second!r} are both {one}; give two models")
    datasets = [
        version.tags.get(tags.DATASET) or read_dataset_name(client, _version_uri(version)) for version in versions
    ]
    if datasets[0] != datasets[1]:
        raise UserError(
            f"evaluate: {first!r} is a model of {datasets[0]} and {second!r} one of {datasets[1]}, so they "
            "cannot be compared; give two models of one dataset"
        )
    (first_score, ours), (second_score, theirs) = (
        (None if again else _stored_score(client, uri, version))
        or _evaluate_version(client, uri, version, read_test_images, trust)
        for uri, version in zip((first, second), versions, strict=True)
    )
    only_first, only_second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return ModelComparison(
        first=first_score,
        second=second_score,
        both=int((ours & theirs).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~ours & ~theirs).sum()),
        p_value=mcnemar(only_first, only_second),
    )


def _stored_score(client: MlflowClient, uri: str, version: ModelVersion) -> tuple[TestScore, BoolArray] | None:
    """Return the recorded score and correct images of a version; None if they are missing or do not agree."""
    known = read_test_result(version)
    if known is None:
        return None
    accuracy = known[0]
    correct = read_correct_images(client, version, accuracy.images)
    if correct is None or correct.sum() != accuracy.correct:
        return None
    return TestScore(uri, *known), correct

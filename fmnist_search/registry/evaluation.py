"""Registered models and the test images: every look is on record, and two models are compared image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.types import Schema, TensorSpec

from fmnist_search.data.images import LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.registry.champion_rule import pack_bits, unpack_bits
from fmnist_search.registry.packaging import LoadedModel, load_model, read_dataset_name
from fmnist_search.registry.versions import get_version, read_test_result, record_test_evaluation
from fmnist_search.results.statistics import mcnemar, wilson
from fmnist_search.results.training import Accuracy

SIGNIFICANCE_LEVEL = 0.05
"""Two models differ where chance alone would part them as far as this seldom or more seldom."""

TEST_CORRECT_TAG = "test_right"
"""Tag of a version: which test images it gets right, a bit for each in their order, packed, as base64."""

BoolArray = npt.NDArray[np.bool_]

TestSetReader = Callable[[str], LabelledImages]
"""The test images of a dataset by its name, read when a model is to meet them."""


def load_classifier(uri: str) -> LoadedModel:
    """A model by its MLflow address, which takes our images and gives a probability for each of its classes.

    Raises:
        UserError: there is no such model, or it takes or gives something else.
    """
    model = load_model(uri)
    signature = mlflow.models.get_model_info(uri).signature
    takes, gives = (
        (_tensor_specs(side) for side in (signature.inputs, signature.outputs)) if signature else (None, None)
    )
    wanted = [("float32", (-1, IMAGE_SIZE, IMAGE_SIZE))], [("float32", (-1, len(model.classes)))]
    if (takes, gives) != wanted:
        expects = (
            f"takes {_format_specs(takes)} and gives {_format_specs(gives)}"
            if signature
            else "does not say what it takes"
        )
        raise UserError(
            f"model {uri!r}: {expects}; a model of {model.dataset} takes float32 (-1, {IMAGE_SIZE}, {IMAGE_SIZE}) "
            f"and gives "
            f"float32 (-1, {len(model.classes)})"
        )
    return model


def _tensor_specs(schema: Schema | None) -> list[tuple[str, tuple[int, ...]]] | None:
    """Types and shapes of a signature's tensors; None where it is of columns."""
    tensors = [spec for spec in schema or [] if isinstance(spec, TensorSpec)]
    return [(str(spec.type), tuple(spec.shape)) for spec in tensors] or None


def _format_specs(tensors: list[tuple[str, tuple[int, ...]]] | None) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in tensors) if tensors else "no tensors"


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version behind `models_app:/NAME@ALIAS`, `models_app:/NAME/VERSION` or `runs:/RUN_ID/model`.

    Raises:
        UserError: there is none.
    """
    if not uri.startswith("runs:/"):
        return get_version(client, uri)
    run_id = uri.removeprefix("runs:/").partition("/")[0]
    versions = client.search_model_versions(f"run_id = '{run_id}'") if run_id.isalnum() else []
    if not versions:
        raise UserError(f"model {uri!r}: no registered version comes from that run; name one: models:/fmnist-search/1")
    return max(versions, key=lambda version: int(version.version))


# ---------------------------------------------------------------------------------- a model alone


@dataclass(frozen=True)
class TestScore:
    """A version's accuracy on the test images, and how often it has met them."""

    model: str
    accuracy: Accuracy
    evaluations: int


def evaluate_model(
    client: MlflowClient, uri: str, read_test_images: TestSetReader, *, again: bool = False
) -> TestScore:
    """A version's accuracy as it is on record, or by a look at the test images, which is put there.

    Raises:
        UserError: there is no such model, or it is no classifier of ours.
    """
    version = find_version(client, uri)
    known = None if again else read_test_result(version)
    return TestScore(uri, *known) if known else _evaluate_version(client, uri, version, read_test_images)[0]


def _evaluate_version(
    client: MlflowClient, uri: str, version: ModelVersion, read_test_images: TestSetReader
) -> tuple[TestScore, BoolArray]:
    model = load_classifier(_version_uri(version))
    images = read_test_images(model.dataset)
    right: BoolArray = model.predict(images.pixels) == images.labels.numpy()
    accuracy = wilson(int(right.sum()), len(images))
    evaluations = record_test_evaluation(client, version, accuracy)
    client.set_model_version_tag(version.name, str(version.version), TEST_CORRECT_TAG, pack_bits(right))
    return TestScore(uri, accuracy, evaluations), right


def _version_uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


# ------------------------------------------------------------------------------------ two of them


@dataclass(frozen=True)
class ModelComparison:
    """Two versions on the same test images: how many both get right, only one, and neither.

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
        """The one that is better past chance; None where they cannot be told apart."""
        if self.p_value > SIGNIFICANCE_LEVEL:
            return None
        return self.first if self.only_first > self.only_second else self.second


def compare_models(
    client: MlflowClient, first: str, second: str, read_test_images: TestSetReader, *, again: bool = False
) -> ModelComparison:
    """Two versions image by image; one whose images are not on record looks at the test images, which is recorded.

    Raises:
        UserError: one is not there or is no classifier of ours, both are the same, or of different datasets.
    """
    versions = [find_version(client, uri) for uri in (first, second)]
    one, other = map(_version_uri, versions)
    if one == other:
        raise UserError(f"evaluate: {first!r} and {second!r} are both {one}; name two models")
    datasets = [read_dataset_name(address) for address in (one, other)]
    if datasets[0] != datasets[1]:
        raise UserError(
            f"evaluate: {first!r} is a model of {datasets[0]} and {second!r} one of {datasets[1]}, so nothing "
            "compares; name two models of one dataset"
        )
    (judged, mine), (rival, theirs) = (
        (None if again else _stored_score(uri, version)) or _evaluate_version(client, uri, version, read_test_images)
        for uri, version in zip((first, second), versions, strict=True)
    )
    only_first, only_second = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return ModelComparison(
        first=judged,
        second=rival,
        both=int((mine & theirs).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~mine & ~theirs).sum()),
        p_value=mcnemar(only_first, only_second),
    )


def _stored_score(uri: str, version: ModelVersion) -> tuple[TestScore, BoolArray] | None:
    """What a version got right at its last look; None where that was not kept, or a later look says otherwise."""
    known = read_test_result(version)
    if known is None:
        return None
    accuracy = known[0]
    try:
        right = unpack_bits(version.tags.get(TEST_CORRECT_TAG, ""), accuracy.images)
    except ValueError:
        return None
    if right.sum() != accuracy.hits:
        return None
    return TestScore(uri, *known), right

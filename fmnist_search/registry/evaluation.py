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

from fmnist_search.data.loading import Labelled
from fmnist_search.errors import UserError
from fmnist_search.registry.champion_rule import pack, unpack
from fmnist_search.registry.packaging import LoadedModel, dataset_of, load_model
from fmnist_search.registry.versions import record_test, test_record, version_of
from fmnist_search.results.study import Accuracy
from fmnist_search.training.evaluation import mcnemar, wilson

SIDE = 28
CERTAINTY = 0.05
"""Two models differ where chance alone would part them as far as this seldom or more seldom."""

RIGHT = "test_right"
"""Tag of a version: which test images it gets right, a bit for each in their order, packed, as base64."""

Flags = npt.NDArray[np.bool_]

TestImages = Callable[[str], Labelled]
"""The test images of a dataset by its name, read when a model is to meet them."""


def load_classifier(uri: str) -> LoadedModel:
    """A model by its MLflow address, which takes our images and gives a probability for each of its classes.

    Raises:
        UserError: there is no such model, or it takes or gives something else.
    """
    model = load_model(uri)
    signature = mlflow.models.get_model_info(uri).signature
    takes, gives = (_shapes(side) for side in (signature.inputs, signature.outputs)) if signature else (None, None)
    wanted = [("float32", (-1, SIDE, SIDE))], [("float32", (-1, len(model.classes)))]
    if (takes, gives) != wanted:
        expects = f"takes {_said(takes)} and gives {_said(gives)}" if signature else "does not say what it takes"
        raise UserError(
            f"model {uri!r}: {expects}; a model of {model.dataset} takes float32 (-1, {SIDE}, {SIDE}) and gives "
            f"float32 (-1, {len(model.classes)})"
        )
    return model


def _shapes(schema: Schema | None) -> list[tuple[str, tuple[int, ...]]] | None:
    """Types and shapes of a signature's tensors; None where it is of columns."""
    tensors = [spec for spec in schema or [] if isinstance(spec, TensorSpec)]
    return [(str(spec.type), tuple(spec.shape)) for spec in tensors] or None


def _said(tensors: list[tuple[str, tuple[int, ...]]] | None) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in tensors) if tensors else "no tensors"


def registered(client: MlflowClient, uri: str) -> ModelVersion:
    """The version behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN_ID/model`.

    Raises:
        UserError: there is none.
    """
    if not uri.startswith("runs:/"):
        return version_of(client, uri)
    run_id = uri.removeprefix("runs:/").partition("/")[0]
    versions = client.search_model_versions(f"run_id = '{run_id}'") if run_id.isalnum() else []
    if not versions:
        raise UserError(f"model {uri!r}: no registered version comes from that run; name one: models:/fmnist-search/1")
    return max(versions, key=lambda version: int(version.version))


# ---------------------------------------------------------------------------------- a model alone


@dataclass(frozen=True)
class Judged:
    """A version's accuracy on the test images, and how often it has met them."""

    model: str
    accuracy: Accuracy
    evaluations: int


def judge(client: MlflowClient, uri: str, test: TestImages, *, again: bool = False) -> Judged:
    """A version's accuracy as it is on record, or by a look at the test images, which is put there.

    Raises:
        UserError: there is no such model, or it is no classifier of ours.
    """
    version = registered(client, uri)
    known = None if again else test_record(version)
    return Judged(uri, *known) if known else _look(client, uri, version, test)[0]


def _look(client: MlflowClient, uri: str, version: ModelVersion, test: TestImages) -> tuple[Judged, Flags]:
    model = load_classifier(_address(version))
    images = test(model.dataset)
    right: Flags = model.predict(images.pixels) == images.labels.numpy()
    accuracy = wilson(int(right.sum()), len(images))
    evaluations = record_test(client, version, accuracy)
    client.set_model_version_tag(version.name, str(version.version), RIGHT, pack(right))
    return Judged(uri, accuracy, evaluations), right


def _address(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


# ------------------------------------------------------------------------------------ two of them


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same test images: how many both get right, only one, and neither.

    `p_value` is that of McNemar's exact two-sided test.
    """

    first: Judged
    second: Judged
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def better(self) -> Judged | None:
        """The one that is better past chance; None where they cannot be told apart."""
        if self.p_value > CERTAINTY:
            return None
        return self.first if self.only_first > self.only_second else self.second


def compare(client: MlflowClient, first: str, second: str, test: TestImages, *, again: bool = False) -> Comparison:
    """Two versions image by image; one whose images are not on record looks at the test images, which is recorded.

    Raises:
        UserError: one is not there or is no classifier of ours, both are the same, or of different datasets.
    """
    versions = [registered(client, uri) for uri in (first, second)]
    one, other = map(_address, versions)
    if one == other:
        raise UserError(f"evaluate: {first!r} and {second!r} are both {one}; name two models")
    datasets = [dataset_of(address) for address in (one, other)]
    if datasets[0] != datasets[1]:
        raise UserError(
            f"evaluate: {first!r} is a model of {datasets[0]} and {second!r} one of {datasets[1]}, so nothing "
            "compares; name two models of one dataset"
        )
    (judged, mine), (rival, theirs) = (
        (None if again else _on_record(uri, version)) or _look(client, uri, version, test)
        for uri, version in zip((first, second), versions, strict=True)
    )
    only_first, only_second = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return Comparison(
        first=judged,
        second=rival,
        both=int((mine & theirs).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~mine & ~theirs).sum()),
        p_value=mcnemar(only_first, only_second),
    )


def _on_record(uri: str, version: ModelVersion) -> tuple[Judged, Flags] | None:
    """What a version got right at its last look; None where that was not kept, or a later look says otherwise."""
    known = test_record(version)
    if known is None:
        return None
    accuracy = known[0]
    try:
        right = unpack(version.tags.get(RIGHT, ""), accuracy.images)
    except ValueError:
        return None
    if right.sum() != accuracy.hits:
        return None
    return Judged(uri, *known), right

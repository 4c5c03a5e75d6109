"""Classifiers as models of MLflow: packaged, and loaded again if their files are those that were registered.

A model is a pt2 file (torch.export). It holds no pickle and can be loaded without this package. It maps float32 pixels
(-1, 28, 28) of 0..255 to probabilities.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import numpy.typing as npt
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.datasets import DEFAULT_DATASET, IMAGE_SIZE, get_dataset
from fmnist_search.registry import tags
from fmnist_search.registry.rebuilding import is_ours, rebuild_classifier
from fmnist_search.registry.verification import (
    GRAPH_FILE,
    check_digests,
    check_file_names,
    check_flavors,
    digests_from_tag,
    file_digests,
    refusal,
)
from fmnist_search.registry.versions import get_version
from fmnist_search.text import first_line

DEFAULT_MODEL = "models:/fmnist-search@champion"
PREDICT_BATCH_SIZE = 1_000


class ProbabilityModel(nn.Module):
    """The exported module: a classifier or an ensemble, followed by a softmax."""

    def __init__(self, classifier: Classifier | Ensemble):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, classes) of float32 pixels (N, 28, 28)."""
        return torch.softmax(self.classifier(pixels), dim=1)


@dataclass(frozen=True)
class PackagedModel:
    """A logged model: its address, and the SHA-256 of each of its files as this process wrote them."""

    uri: str
    digests: Mapping[str, str]


def log_model(classifier: Classifier | Ensemble, run_id: str, dataset: str, marks: Mapping[str, str]) -> PackagedModel:
    """Log the classifier as a model of a run, with `marks` among its tags, and return it.

    MLflow sets the status of the run to FINISHED. The name of the dataset and its classes are part of the model's
    metadata. Call this in the main thread, because MLflow logs models to the active run, which belongs to a thread.
    """
    model, flavor = ProbabilityModel(copy.deepcopy(classifier).cpu().eval()).eval(), _CpuPytorchFlavor()
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecations inside torch.export and MLflow
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=flavor,
            flavor_name="pytorch",
            pytorch_model=model,
            tags={"dataset": dataset, **marks},
            metadata={"dataset": dataset, "classes": list(get_dataset(dataset).classes)},
            validate_serving_input=False,
            serialization_format="pt2",
            signature=_signature(classifier),
            # Two images: with an example of one image the batch size would be a constant of the graph.
            input_example=np.zeros((2, IMAGE_SIZE, IMAGE_SIZE), np.float32),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
        )
    return PackagedModel(str(logged.model_uri), flavor.digests)


class _CpuPytorchFlavor:
    """MLflow's pytorch flavor for the CPU. On a machine with a GPU, MLflow would try to move a pt2 model and fail.

    `digests` are those of the files that it saved last, before they are sent to the artifact store.
    """

    def __init__(self) -> None:
        self.digests: Mapping[str, str] = {}

    def save_model(self, path: str, mlflow_model: Model, validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **settings)
        mlflow_model.flavors["python_function"]["config"] = {"device": "cpu"}
        mlflow_model.save(str(Path(path) / "MLmodel"))
        self.digests = file_digests(Path(path))


def _signature(classifier: Classifier | Ensemble) -> ModelSignature:
    with torch.inference_mode():
        classes = classifier.cpu()(torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE)).shape[1]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, IMAGE_SIZE, IMAGE_SIZE))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )


# -------------------------------------------------------------------------------------------- loading


class LoadedModel:
    """A registered model that predicts on the CPU, with its signature and the names of its dataset and classes.

    `compute` maps images float32 (N, 28, 28) to probabilities; `make_module` returns the model as a module of torch.
    """

    def __init__(
        self,
        uri: str,
        description: Model,
        compute: Callable[[npt.NDArray[np.float32]], npt.ArrayLike],
        make_module: Callable[[], nn.Module],
    ):
        self.uri = uri
        self.signature: ModelSignature | None = description.signature
        self.dataset, self.classes = dataset_metadata(description.metadata)
        self.make_module = make_module
        self._compute = compute

    def probabilities(self, pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        """Return probabilities float32 (N, classes) of images with pixels of 0..255.

        The images are (28, 28), (N, 28, 28) or (N, 1, 28, 28).

        Raises:
            UserError: if the images have another shape.
        """
        images = as_model_input(pixels)
        parts = [
            self._compute(images[at : at + PREDICT_BATCH_SIZE]) for at in range(0, len(images), PREDICT_BATCH_SIZE)
        ]
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    def predict(self, pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.int64]:
        """Return the most probable class of each image, int64 (N,), see `probabilities`."""
        classes: npt.NDArray[np.int64] = self.probabilities(pixels).argmax(1)
        return classes


def dataset_metadata(metadata: Mapping[str, Any] | None) -> tuple[str, tuple[str, ...]]:
    """Return dataset and classes of a model from its metadata; without them, those of the default dataset."""
    match metadata:
        case {"dataset": str(dataset), "classes": [*classes]}:
            return dataset, tuple(map(str, classes))
    return DEFAULT_DATASET, get_dataset(DEFAULT_DATASET).classes


def read_dataset_name(uri: str) -> str:
    """Return the name of the dataset of a model by its MLflow address, without loading the weights.

    Raises:
        UserError: if there is no such model.
    """
    with _model_errors(uri):
        return dataset_metadata(mlflow.models.get_model_info(uri).metadata)[0]


def as_model_input(pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
    """Return images as float32 (N, 28, 28), the input of a model, and warn if they do not look like 0..255.

    The images are (28, 28), (N, 28, 28) or (N, 1, 28, 28).

    Raises:
        UserError: if the images have another shape, or there are none.
    """
    images = np.asarray(pixels)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or not len(images):
        raise UserError(f"images: shape {np.shape(pixels)} is not (N, 28, 28); resize them to 28 by 28 grey pixels")
    if np.issubdtype(images.dtype, np.floating) and images.max() <= 1:
        warnings.warn("all pixels lie within 0..1, but the model expects 0..255: multiply by 255", stacklevel=3)
    return images.astype(np.float32)


def load_model(uri: str = DEFAULT_MODEL, tracking_uri: str | None = None, *, trust: bool = False) -> LoadedModel:
    """Load a registered model by its MLflow address, by default the champion.

    Only files that this program wrote are loaded: their digests must be those that the version was registered with. A
    version without digests, of an earlier version of this program, is rebuilt from its weights. With `trust`, MLflow
    loads any model, also one that is not registered, and runs the code that its files contain or name.

    Raises:
        UserError: if there is no such model, or it is not trusted.
    """
    client = MlflowClient(tracking_uri or mlflow.get_tracking_uri())
    with _model_errors(uri), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load_trusted(uri, folder) if trust else _load_verified(client, uri, Path(folder))


def _load_verified(client: MlflowClient, uri: str, folder: Path) -> LoadedModel:
    version = get_version(client, uri)
    if not (is_ours(version) or tags.FILE_DIGESTS in version.tags):
        raise refusal(uri, "was not registered by this program")
    source = f"models:/{version.name}/{version.version}"
    path = Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=client.tracking_uri))
    if tags.FILE_DIGESTS in version.tags:
        check_digests(path, digests_from_tag(version.tags[tags.FILE_DIGESTS], uri), uri)
        description = _read_description(path, uri)
        module: nn.Module = torch.export.load(path / GRAPH_FILE).module()
    else:
        check_file_names(path, uri)
        description = _read_description(path, uri)
        module = ProbabilityModel(rebuild_classifier(client, version, path, uri)).eval()
    return LoadedModel(uri, description, partial(_compute, module), lambda: module)


def _read_description(folder: Path, uri: str) -> Model:
    """Return what MLmodel says, once it is clear that it names no code."""
    try:
        description: Model = Model.load(str(folder))
    except Exception:  # YAML of any content
        raise refusal(uri, "MLmodel is damaged") from None
    check_flavors(description.flavors, uri)
    return description


def _compute(module: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        probabilities: npt.NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
    return probabilities


def _load_trusted(uri: str, folder: str) -> LoadedModel:
    try:
        with _pickles_allowed():
            model = mlflow.pyfunc.load_model(uri, dst_path=folder)
    except (MlflowException, OSError):
        raise
    except Exception as error:  # of the model's own code, or of a library that it needs
        detail = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(f"model {uri!r}: cannot be loaded ({detail}); give another model") from error
    return LoadedModel(uri, model.metadata, model.predict, partial(_load_module, uri))


def _load_module(uri: str) -> nn.Module:
    with _pickles_allowed():
        module: nn.Module = mlflow.pytorch.load_model(uri)
    return module


@contextlib.contextmanager
def _pickles_allowed(variable: str = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION") -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = "true"
    try:
        yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


@contextlib.contextmanager
def _model_errors(uri: str) -> Iterator[None]:
    """Turn the errors of a model that cannot be loaded into a `UserError`."""
    try:
        yield
    except (MlflowException, OSError) as error:
        detail = first_line(error)
        raise UserError(
            f"model {uri!r}: cannot be loaded from {mlflow.get_tracking_uri()} ({detail[:200]}); "
            "run a search first, or give a model such as models:/fmnist-search/1"
        ) from error

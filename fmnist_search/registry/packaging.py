"""Classifiers as models of MLflow: packaged, and loaded again if their files are those that were registered.

A model is a pt2 file (torch.export). It holds no pickle and can be loaded without this package. It maps float32 pixels
(-1, 28, 28) of 0..255 to probabilities.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlflow.entities import LoggedModelOutput, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking.context import registry as context_registry
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.datasets import DEFAULT_DATASET, IMAGE_SIZE, get_dataset
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.model_files import download_model
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
from fmnist_search.registry.versions import check_files, get_version
from fmnist_search.text import first_line

DEFAULT_MODEL = "models:/fmnist-search@champion"
PREDICT_BATCH_SIZE = 1_000
_EXPORT_LOCK = threading.Lock()
"""One thread at a time exports a model: warnings are silenced for the whole process in the meantime."""


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


def log_model(
    client: MlflowClient, classifier: Classifier | Ensemble, run_id: str, dataset: str, marks: Mapping[str, str]
) -> PackagedModel:
    """Log the classifier as a model of a run, with `marks` among its tags, and return it.

    The name of the dataset and its classes are part of the model's metadata. What `mlflow.pytorch.log_model` does with
    the active run, which belongs to the caller, is done with the client here.
    """
    run = client.get_run(run_id)
    model_tags = context_registry.resolve_tags({"dataset": dataset, **marks})
    logged = client.create_logged_model(run.info.experiment_id, "model", run_id, model_tags, run.data.params)
    try:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        _log_metrics_of_model(client, run, logged.model_id)
        description = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            metadata={"dataset": dataset, "classes": list(get_dataset(dataset).classes)},
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model")
            digests = _save_model(classifier, path, description)
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return PackagedModel(str(logged.model_uri), digests)


def _log_metrics_of_model(client: MlflowClient, run: Run, model_id: str) -> None:
    """Log the metrics of a run at step 0, such as its test accuracy, for a model as well: the UI shows them with it."""
    points = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    own = [point for point in points if point.step == 0 and point.model_id is None]
    metrics = [Metric(each.key, each.value, each.timestamp, each.step, model_id=model_id) for each in own]
    client.log_batch(run.info.run_id, metrics)


def _save_model(classifier: Classifier | Ensemble, path: Path, description: Model) -> Mapping[str, str]:
    """Write the files of a model to a new folder; return their digests, before they are sent to the artifact store."""
    with _EXPORT_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecations inside torch.export and MLflow
        mlflow.pytorch.save_model(
            ProbabilityModel(copy.deepcopy(classifier).cpu().eval()).eval(),
            str(path),
            mlflow_model=description,
            serialization_format="pt2",
            signature=_signature(classifier),
            # Two images: with an example of one image the batch size would be a constant of the graph.
            input_example=np.zeros((2, IMAGE_SIZE, IMAGE_SIZE), np.float32),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
        )
        # On a machine with a GPU, MLflow would try to move a pt2 model there and fail.
        description.flavors["python_function"]["config"] = {"device": "cpu"}
        description.save(str(path / "MLmodel"))
        return file_digests(path)


def weights_digest(classifier: Classifier | Ensemble, recipes: Sequence[Recipe]) -> str:
    """Return the SHA-256 of the recipes and the weights of a model, which determine its predictions."""
    found = hashlib.sha256("\n".join(map(recipe_to_toml, recipes)).encode())
    for name, value in sorted(classifier.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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


def model_from_classifier(uri: str, classifier: Classifier, dataset: str) -> LoadedModel:
    """Return a classifier that is not registered as a model; `uri` stands for it in messages."""
    module = ProbabilityModel(classifier).eval()
    metadata = {"dataset": dataset, "classes": list(get_dataset(dataset).classes)}
    description = Model(signature=_signature(classifier), metadata=metadata)
    return LoadedModel(uri, description, partial(_compute, module), lambda: module)


def dataset_metadata(metadata: Mapping[str, Any] | None) -> tuple[str, tuple[str, ...]]:
    """Return dataset and classes of a model from its metadata; without them, those of the default dataset."""
    match metadata:
        case {"dataset": str(dataset), "classes": [*classes]}:
            return dataset, tuple(map(str, classes))
    return DEFAULT_DATASET, get_dataset(DEFAULT_DATASET).classes


def read_dataset_name(client: MlflowClient, uri: str) -> str:
    """Return the name of the dataset of a model by its MLflow address, without loading the weights.

    Raises:
        UserError: if there is no such model.
    """
    with _model_errors(uri, client), tempfile.TemporaryDirectory() as folder:
        return dataset_metadata(Model.load(str(download_model(client, uri, Path(folder), "MLmodel"))).metadata)[0]


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
    with _model_errors(uri, client), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load_trusted(client, uri, Path(folder)) if trust else _load_verified(client, uri, Path(folder))


def _load_verified(client: MlflowClient, uri: str, folder: Path) -> LoadedModel:
    version = get_version(client, uri)
    if not (is_ours(version) or tags.FILE_DIGESTS in version.tags):
        raise refusal(uri, "was not registered by this program")
    check_files(client, version)
    path = download_model(client, f"models:/{version.name}/{version.version}", folder)
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


def _load_trusted(client: MlflowClient, uri: str, folder: Path) -> LoadedModel:
    try:
        with _pickles_allowed():
            model = mlflow.pyfunc.load_model(str(download_model(client, uri, folder)))
    except (MlflowException, OSError):
        raise
    except Exception as error:  # of the model's own code, or of a library that it needs
        detail = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(f"model {uri!r}: cannot be loaded ({detail}); give another model") from error
    return LoadedModel(uri, model.metadata, model.predict, partial(_load_module, client, uri))


def _load_module(client: MlflowClient, uri: str) -> nn.Module:
    with _pickles_allowed(), tempfile.TemporaryDirectory() as folder:
        module: nn.Module = mlflow.pytorch.load_model(str(download_model(client, uri, Path(folder))))
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
def _model_errors(uri: str, client: MlflowClient) -> Iterator[None]:
    """Turn the errors of a model that cannot be loaded into a `UserError`."""
    try:
        yield
    except (MlflowException, OSError) as error:
        detail = first_line(error)
        raise UserError(
            f"model {uri!r}: cannot be loaded from {client.tracking_uri} ({detail[:200]}); "
            "run a search first, or give a model such as models:/fmnist-search/1"
        ) from error

"""A classifier as a model of MLflow: packaged, and such a model loaded again.

It is a pt2 file (torch.export): no pickle, and no code of ours is needed to load it. It takes float32 pixels
(-1, 28, 28) of 0..255 and gives probabilities.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import numpy.typing as npt
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.datasets import DEFAULT_DATASET, IMAGE_SIZE, get_dataset
from fmnist_search.text import first_line

DEFAULT_MODEL = "models:/fmnist-search@champion"
PREDICT_BATCH_SIZE = 1_000


class ProbabilityModel(nn.Module):
    """What is exported: a classifier or an ensemble that ends in probabilities."""

    def __init__(self, classifier: Classifier | Ensemble):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (N, classes) of float32 pixels (N, 28, 28)."""
        return torch.softmax(self.classifier(pixels), dim=1)


def log_model(classifier: Classifier | Ensemble, run_id: str, dataset: str, tags: Mapping[str, str]) -> str:
    """Log the classifier as a model of a run, which must be closed or closing: MLflow ends it as FINISHED.

    Which dataset it was trained on, and the names of its classes, go with it wherever it is copied.

    Returns the model's address. Call it in the main thread: MLflow's logging of models has no run id of its own.
    """
    model = ProbabilityModel(copy.deepcopy(classifier).cpu().eval()).eval()
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from inside torch.export and MLflow, about their own deprecations
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=_CpuPytorchFlavor,
            flavor_name="pytorch",
            pytorch_model=model,
            tags={"dataset": dataset, **tags},
            metadata={"dataset": dataset, "classes": list(get_dataset(dataset).classes)},
            validate_serving_input=False,
            serialization_format="pt2",
            signature=_signature(classifier),
            # Two images: an example of one would freeze the batch size into the graph.
            input_example=np.zeros((2, IMAGE_SIZE, IMAGE_SIZE), np.float32),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
        )
    return str(logged.model_uri)


class _CpuPytorchFlavor:
    """MLflow's pytorch flavor, pinned to the CPU: MLflow cannot move a pt2 model, and tries where it sees a GPU."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **settings)
        mlflow_model.flavors["python_function"]["config"] = {"device": "cpu"}
        mlflow_model.save(str(Path(path) / "MLmodel"))


def _signature(classifier: Classifier | Ensemble) -> ModelSignature:
    with torch.inference_mode():
        classes = classifier.cpu()(torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE)).shape[1]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, IMAGE_SIZE, IMAGE_SIZE))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )


# -------------------------------------------------------------------------------------------- loading


class LoadedModel:
    """A registered model, ready to predict on the CPU; it knows its dataset and the names of its classes."""

    def __init__(self, uri: str, model: Any):
        self.uri = uri
        self.dataset, self.classes = dataset_metadata(model.metadata.metadata)
        self._model = model

    def probabilities(self, pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        """Probabilities (N, classes) of images (28, 28), (N, 28, 28) or (N, 1, 28, 28) with pixels of 0..255.

        Raises:
            UserError: the images have another shape.
        """
        images = as_model_input(pixels)
        parts = [
            self._model.predict(images[at : at + PREDICT_BATCH_SIZE])
            for at in range(0, len(images), PREDICT_BATCH_SIZE)
        ]
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    def predict(self, pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.int64]:
        """The most probable class of each image."""
        classes: npt.NDArray[np.int64] = self.probabilities(pixels).argmax(1)
        return classes


def dataset_metadata(metadata: Mapping[str, Any] | None) -> tuple[str, tuple[str, ...]]:
    """The dataset and the classes of a model, of what was packed with it; old ones and those of others say nothing."""
    match metadata:
        case {"dataset": str(dataset), "classes": [*classes]}:
            return dataset, tuple(map(str, classes))
    return DEFAULT_DATASET, get_dataset(DEFAULT_DATASET).classes


def read_dataset_name(uri: str) -> str:
    """The dataset of a model by its MLflow address, without loading its weights.

    Raises:
        UserError: there is no such model.
    """
    with _model_errors(uri):
        return dataset_metadata(mlflow.models.get_model_info(uri).metadata)[0]


def as_model_input(pixels: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
    """Images in the registered model's form, float32 (N, 28, 28); warns where they do not look like 0..255.

    Raises:
        UserError: they have another shape, or none.
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


def load_model(uri: str = DEFAULT_MODEL, tracking_uri: str | None = None) -> LoadedModel:
    """A model by its MLflow address, by default the champion; nothing in it is ever unpickled.

    Raises:
        UserError: there is no such model.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    if tracking_uri:
        mlflow.set_tracking_uri(tracking_uri)
    with _model_errors(uri), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoadedModel(uri, mlflow.pyfunc.load_model(uri, dst_path=folder))


@contextlib.contextmanager
def _model_errors(uri: str) -> Iterator[None]:
    """Says of a model that cannot be read what to do."""
    try:
        yield
    except (MlflowException, OSError) as error:
        detail = first_line(error)
        raise UserError(
            f"model {uri!r}: cannot be loaded from {mlflow.get_tracking_uri()} ({detail[:200]}); "
            "run a search first, or name a model such as models:/fmnist-search/1"
        ) from error

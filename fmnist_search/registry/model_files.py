"""Files of models, by their MLflow addresses, from the store of a client.

MLflow's own functions look models up in the global tracking store, which belongs to the caller of this package.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking._tracking_service import utils

_GLOBAL_STORE_LOCK = threading.RLock()


def download_model(client: MlflowClient, uri: str, folder: Path, path: str = "") -> Path:
    """Download the files of a model, or the one at `path`, to an existing folder, and return where they are.

    Raises:
        MlflowException: if there is no such model.
    """
    while uri.startswith("models:"):
        found = get_model_name_and_version(client, uri)  # type: ignore[no-untyped-call]
        is_version = len(found) == 2
        uri = client.get_model_version_download_uri(*found) if is_version else _location(client, found[0])
    repository = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    return Path(repository.download_artifacts(path, dst_path=str(folder)))  # type: ignore[no-untyped-call]


def _location(client: MlflowClient, model_id: str) -> str:
    return str(client.get_logged_model(model_id).artifact_location)


@contextlib.contextmanager
def as_global_store(uri: str) -> Iterator[None]:
    """Make a store MLflow's global one for a moment, without a change of the environment.

    A database of MLflow that registers a logged model looks it up in the global store, whatever the client says.
    """
    with _GLOBAL_STORE_LOCK:
        before = utils._tracking_uri
        utils._tracking_uri = uri  # type: ignore[assignment]
        try:
            yield
        finally:
            utils._tracking_uri = before

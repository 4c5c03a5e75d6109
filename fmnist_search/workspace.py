"""The places of all files: the image cache, the MLflow store, and the folder of this program beside it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from fmnist_search.errors import UserError

APP_NAME = "fmnist-search"


def image_cache_folder() -> Path:
    """Return the folder of the verified images, which all studies of a user share."""
    return _user_cache_folder() / "images"


def template_folder() -> Path:
    """Return the folder of empty stores that new ones are copied from."""
    return _user_cache_folder() / "templates"


def lock_file(tracking_uri: str) -> Path:
    """Return the file that the processes of a user lock while they change aliases in a store."""
    return _user_cache_folder() / "locks" / f"{hashlib.sha256(tracking_uri.encode()).hexdigest()[:16]}.lock"


def _user_cache_folder() -> Path:
    import platformdirs  # not at the top: reading images and training work where it is not installed

    return platformdirs.user_cache_path(APP_NAME)


@dataclass(frozen=True)
class Workspace:
    """The places of a user's studies: the MLflow store, the folder of this program's files, the folder of the images.

    If `data_dir` is None, the images are searched in the usual places.
    """

    tracking_uri: str
    folder: Path
    data_dir: Path | None = None

    @classmethod
    def resolve(
        cls, tracking_uri: str | None = None, workdir: str | Path | None = None, data_dir: str | Path | None = None
    ) -> Workspace:
        """Return the workspace that these options, the environment and the current folder define.

        Raises:
            UserError: if the current folder holds MLflow's old file store and no store is named.
        """
        uri = resolve_tracking_uri(tracking_uri)
        return cls(uri, resolve_workdir(uri, workdir), Path(data_dir) if data_dir else None)

    @property
    def storage_url(self) -> str:
        """The URL of Optuna's storage."""
        return f"sqlite:///{self.folder / 'optuna.db'}"

    @property
    def outbox_path(self) -> Path:
        """The file with the events that are on their way to MLflow."""
        return self.folder / "outbox.db"

    def weights_path(self, study: str, number: int) -> Path:
        """Return the file with the weights of a completed trial."""
        return self.folder / "weights" / study / f"{number:03d}.pt"

    def training_folder(self, run_id: str) -> Path:
        """Return the folder with the checkpoints of a single training."""
        return self.folder / "weights" / "train" / run_id

    def rename_weights(self, study: str, renamed: str) -> None:
        """Move the weights of a study that was renamed."""
        folder = self.folder / "weights" / study
        if folder.exists():
            folder.rename(folder.with_name(renamed))


def resolve_tracking_uri(given: str | None = None) -> str:
    """Return the MLflow store: the given one, else MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.

    The path of a SQLite URI is made absolute, so that it names the same file after a change of folder.

    Raises:
        UserError: if no store is named and the current folder holds MLflow's old file store, which MLflow would take.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and any(Path("mlruns").glob("[0-9]*/meta.yaml")):
        raise UserError(
            "./mlruns: is the file store of an older MLflow, which prevents the use of mlflow.db; convert it with "
            "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db` and rename it, or name a store "
            "with --tracking-uri"
        )
    uri = uri or "sqlite:///mlflow.db"
    database = sqlite_path(uri)
    return f"sqlite:///{database}" if database else uri


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of the file of a `sqlite:///` URI; None for any other URI."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :]).absolute() if uri.startswith(prefix) else None


def resolve_workdir(tracking_uri: str, given: str | Path | None = None) -> Path:
    """Return the folder of this program's files.

    It is the given one, else FMNIST_SEARCH_HOME, else beside a SQLite store, else in the user's data folder.
    """
    chosen = given or os.environ.get("FMNIST_SEARCH_HOME")
    if chosen:
        return Path(chosen).absolute()
    database = sqlite_path(tracking_uri)
    if database:
        return database.parent / APP_NAME
    server = urlparse(tracking_uri)
    address = f"{server.netloc.rpartition('@')[2]}/{server.path.strip('/')}".strip("/")
    import platformdirs

    return platformdirs.user_data_path(APP_NAME) / address

"""The files of trainings without a study: artifacts, copies in an output folder, and event files of TensorBoard."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, content_digest
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.tables import epochs_csv
from fmnist_search.results.training import TrialResult
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.training_run_logger import RECIPE_FILE
from fmnist_search.training.checkpoint import state_to_bytes

BEST_FILE, LAST_FILE, EPOCHS_FILE = "weights.pt", "last_weights.pt", "epochs.csv"
COPIED_FILES = (RECIPE_FILE, BEST_FILE, LAST_FILE, EPOCHS_FILE)


def check_output(folder: Path | None, subfolders: Sequence[str] = (".",), *, overwrite: bool = False) -> None:
    """Create the folder and check, before anything is trained, that copies of the files can be written to it.

    Raises:
        UserError: if it cannot be written, or one of the subfolders has such a file and `overwrite` is not set.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); name another folder") from None
    paths = [folder / subfolder / name for subfolder in subfolders for name in COPIED_FILES]
    if not overwrite and (found := next((path for path in paths if path.exists()), None)):
        raise UserError(f"--output {folder}: {found} exists already; name another folder, or replace it with --force")


def seed_folder(recipe: Recipe) -> str:
    """Return the name of the folder of one of several seeds, below that of all."""
    return f"seed-{recipe.seed}"


def tensorboard_folder(parent: Path, name: str, run_key: str) -> Path:
    """Return the folder of a run below the one that TensorBoard is given; it shows the folder's name as the run's."""
    return parent / f"{re.sub('[^A-Za-z0-9_.]+', '-', name).strip('-')}-{run_key[:8]}"


def artifact_files(weights: Mapping[str, Mapping[str, Tensor]], result: TrialResult) -> dict[str, bytes]:
    """Return the artifacts of a training by name: weights as state files, and its epochs as CSV."""
    states = {name: state_to_bytes(state) for name, state in weights.items()}
    return {**states, EPOCHS_FILE: epochs_csv(result.epochs).encode()}


def store_files(files: Mapping[str, bytes], run: RunLogger, recipe: Recipe, output: Path | None) -> None:
    """Log the artifacts of a training, and copy them with the recipe to the folder `output`, if there is one.

    The digest of those weights that are read again is a tag.
    """
    run.set_tags({tag_names.WEIGHTS_DIGEST: content_digest(files[BEST_FILE])})
    for path, content in files.items():
        run.log_artifact(path, content)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in {RECIPE_FILE: recipe_to_toml(recipe).encode(), **files}.items():
            with atomic_write(output / name) as file:
                file.write(content)

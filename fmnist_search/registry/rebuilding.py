"""Models of versions without digests, which earlier versions of this program registered, rebuilt from their weights.

Loading an exported graph evaluates expressions in it. Here only the weights are read from it, as plain numbers; the
network comes from this program's own code and the recipe of the run. The graph itself is not read.
"""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch import Tensor

from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.models.classifier import MAX_PARAMETERS, Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags
from fmnist_search.registry.verification import GRAPH_FILE, refusal
from fmnist_search.training.checkpoint import classifier_from_weights

RECIPE_FILE = "recipe.toml"
WEIGHTS_FOLDER = "model/data/weights"
WEIGHTS_CONFIG = f"{WEIGHTS_FOLDER}/model_weights_config.json"
MAX_CONFIG_BYTES = 10_000_000
MAX_WEIGHTS_BYTES = 8 * MAX_PARAMETERS
DTYPES = {5: torch.int64, 7: torch.float32}
"""The numbers of the types of tensors in a pt2 file that our networks have."""


def is_ours(version: ModelVersion) -> bool:
    """Return whether the tags of a version say that this program registered it."""
    return tags.NETWORK in version.tags and tags.CONFIRMED_MEAN in version.tags


def rebuild_classifier(client: MlflowClient, version: ModelVersion, folder: Path, uri: str) -> Classifier | Ensemble:
    """Return the classifier of a version, with the weights from the folder of its model, in evaluation mode.

    Raises:
        UserError: if its recipe or its weights cannot be read, or do not belong together.
    """
    run_ids = version.tags.get(tags.MEMBER_RUNS, version.run_id or "").split(", ")
    if int(version.tags.get(tags.ENSEMBLE, "0")) not in (0, len(run_ids)):
        raise refusal(uri, "an earlier version registered this ensemble without digests of its files")
    recipes = [_read_recipe(client, run_id, uri) for run_id in run_ids]
    try:
        weights = read_weights(folder / GRAPH_FILE)
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError, RecursionError):
        raise refusal(uri, f"the weights in {GRAPH_FILE} cannot be read without running code") from None
    name = f"model {uri!r}: {GRAPH_FILE}"
    if len(recipes) == 1 and tags.MEMBER_RUNS not in version.tags:
        return classifier_from_weights(recipes[0], _below("classifier.", weights), name)
    members = [
        classifier_from_weights(recipe, _below(f"classifier.members.{number}.", weights), name)
        for number, recipe in enumerate(recipes)
    ]
    return Ensemble(members).eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a pt2 file by name, read as numbers only.

    Raises:
        ValueError: if the file has pickled weights, other types, or more than a model can have.
        Exception: of `zipfile`, `json` and torch, if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(WEIGHTS_CONFIG).file_size > MAX_CONFIG_BYTES:
            raise ValueError("the description of the weights is too large")
        entries: dict[str, Any] = json.loads(archive.read(WEIGHTS_CONFIG))["config"]
        records = [archive.getinfo(f"{WEIGHTS_FOLDER}/{entry['path_name']}") for entry in entries.values()]
        if sum(record.file_size for record in records) > MAX_WEIGHTS_BYTES:
            raise ValueError("the weights are larger than those of any model")
        return {name: _read_tensor(archive, entry) for name, entry in entries.items()}


def _read_tensor(archive: zipfile.ZipFile, entry: Mapping[str, Any]) -> Tensor:
    described = entry["tensor_meta"]
    if entry["use_pickle"] or described["dtype"] not in DTYPES:
        raise ValueError("a weight is not a plain tensor")
    content = bytearray(archive.read(f"{WEIGHTS_FOLDER}/{entry['path_name']}"))
    sizes, strides = ([int(each["as_int"]) for each in described[key]] for key in ("sizes", "strides"))
    flat = torch.frombuffer(content, dtype=DTYPES[described["dtype"]])
    if math.prod(sizes) > len(flat):  # a stride of 0 would make any size of a few bytes
        raise ValueError("a weight is larger than its record")
    return flat.as_strided(sizes, strides, int(described["storage_offset"]["as_int"])).clone()


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _read_recipe(client: MlflowClient, run_id: str, uri: str) -> Recipe:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return recipe_from_toml(Path(client.download_artifacts(run_id, RECIPE_FILE, folder)).read_text())
    except (MlflowException, OSError, ValueError) as error:
        raise refusal(uri, f"{RECIPE_FILE} of the run {run_id!r} that it comes from cannot be read") from error

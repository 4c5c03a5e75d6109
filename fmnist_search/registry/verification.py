"""The files of a registered model, checked before anything is loaded from them.

The registry's database is trusted, the artifact store is not: whoever can write there could make MLflow import a module
or unpickle an object. A version therefore keeps the SHA-256 of each file of its model as a tag. Versions of earlier
versions of this program have no such tag; `rebuilding` loads them without running anything that is in their files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmnist_search.errors import UserError

GRAPH_FILE = "data/model.pt2"
"""The exported graph in the folder of a model."""
MODEL_FILES = frozenset(
    {
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", GRAPH_FILE),
        *("input_example.json", "serving_input_example.json"),
    }
)
"""The files that a model of this program has."""
DOWNLOAD_FILES = {"registered_model_meta"}
"""Files that MLflow adds when it downloads a version; nothing reads them."""
LOADER = "mlflow.pytorch"
FLAVORS = {"python_function", "pytorch"}
CODE_SETTINGS = ("code", "model_code_path")
"""Settings of a flavor that make MLflow import modules from the folder of the model."""


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, in hexadecimal, by its path with `/`."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def digests_to_tag(digests: Mapping[str, str]) -> str:
    """Return the value of the tag that holds the digests: JSON of less than a thousand characters."""
    return json.dumps(digests, separators=(",", ":"))


def digests_from_tag(value: str, uri: str) -> dict[str, str]:
    """Return the digests in the value of a tag.

    Raises:
        UserError: if it is not such a value.
    """
    try:
        digests = json.loads(value)
    except ValueError:
        digests = None
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise refusal(uri, "its tag with the digests of its files is damaged")
    return digests


def check_digests(folder: Path, expected: Mapping[str, str], uri: str) -> None:
    """Check that a folder has the files of a model as they were registered, and no others.

    Raises:
        UserError: if a file is missing, was added, or differs.
    """
    found = {path: digest for path, digest in file_digests(folder).items() if path not in DOWNLOAD_FILES}
    for path in sorted({*expected, *found}):
        if path not in found:
            raise refusal(uri, f"{path} is missing from the artifact store")
        if path not in expected:
            raise refusal(uri, f"{path} was added after the model was registered")
        if found[path] != expected[path]:
            raise refusal(uri, f"{path} is not the file that was registered (its SHA-256 differs)")


def check_file_names(folder: Path, uri: str) -> None:
    """Check that a folder has no other files than models of this program have.

    Raises:
        UserError: if it has another file.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for path in sorted(found - MODEL_FILES - DOWNLOAD_FILES):
        raise refusal(uri, f"{path} is no file of a model that this program wrote")


def check_flavors(flavors: Mapping[str, Any], uri: str) -> None:
    """Check that the flavors in MLmodel are those that this program writes, and that none loads a module.

    Raises:
        UserError: if there is another flavor or loader, or one names code.
    """
    for name, settings in flavors.items():
        if name not in FLAVORS or not isinstance(settings, Mapping):
            raise refusal(uri, f"MLmodel has the flavor {name!r}")
        if settings.get("loader_module", LOADER) != LOADER:
            raise refusal(uri, f"MLmodel names the loader {settings['loader_module']!r}")
        for key in CODE_SETTINGS:
            if settings.get(key):
                raise refusal(uri, f"MLmodel names code to import ({key}: {settings[key]!r})")


def refusal(uri: str, reason: str) -> UserError:
    """Return the error for a model that is not loaded."""
    return UserError(
        f"model {uri!r}: {reason}, so it is not loaded; register it again, or add --trust (trust=True) if you trust "
        "everybody who can write its files"
    )

"""Versions of registered models: found, and their validation and test scores read."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_search.artifact_root import check_existing_artifacts
from fmnist_search.errors import UserError
from fmnist_search.files import content_digest
from fmnist_search.registry import tags
from fmnist_search.registry.champion_rule import CorrectnessRecord, ValidationScore, unpack_bits
from fmnist_search.results.statistics import wilson
from fmnist_search.results.training import Accuracy
from fmnist_search.text import first_line

_NUMBERED_VERSION = re.compile("models:/([^/]+)/([1-9][0-9]{0,8}|latest)")
_NAMED_VERSION = re.compile("models:/([^/]+)@([^/@]+)")

DESCRIPTION_LIMIT = 5_000
"""Characters of a version's description: the size of the column in MLflow's database; PostgreSQL refuses more."""


def all_versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """Return all versions of a registered model, by number."""
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token or ""
    return {int(version.version): version for version in found}


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version with the champion alias; None if there is none."""
    return version_with_alias(client, name, tags.CHAMPION)


def version_with_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version with an alias; None if there is no such model or alias."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise


def has_version(client: MlflowClient, name: str, version: str) -> bool:
    """Return whether the registry has a version."""
    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def version_number(version: ModelVersion | None) -> int | None:
    """Return the number of a version, if there is one."""
    return int(version.version) if version else None


def get_version(client: MlflowClient, uri: str) -> ModelVersion:
    """Return the version behind `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME/latest`
    or `runs:/RUN_ID/model`.

    Raises:
        UserError: if there is none.
    """
    if uri.startswith("runs:/"):
        return _version_of_run(client, uri)
    numbered, named = _NUMBERED_VERSION.fullmatch(uri), _NAMED_VERSION.fullmatch(uri)
    if not (numbered or named):
        raise UserError(
            f"model {uri!r}: is not the address of a registered model; write models:/fmnist-search@champion"
        )
    try:
        if named:
            return client.get_model_version_by_alias(*named.groups())
        name, number = numbered.groups() if numbered else ("", "")
        return client.get_model_version(name, str(max(all_versions(client, name))) if number == "latest" else number)
    except (MlflowException, ValueError) as error:  # ValueError: there is no version
        raise UserError(
            f"model {uri!r}: does not exist ({first_line(error)[:200]}); run a search first, register the best of a "
            "finished study with `fmnist-search promote STUDY`, or give one such as models:/fmnist-search/1"
        ) from None


def check_files(client: MlflowClient, version: ModelVersion) -> None:
    """Check that the files of a version lie where the registry says, and belong to its store.

    Raises:
        UserError: if they are missing, or the project was moved or copied since they were written.
    """
    address = client.get_model_version_download_uri(version.name, str(version.version))
    subject = f"model 'models:/{version.name}/{version.version}'"
    check_existing_artifacts(client.tracking_uri, address, subject, "restore it, or promote again")


def _version_of_run(client: MlflowClient, uri: str) -> ModelVersion:
    """Return the newest version that comes from the run of an address `runs:/RUN_ID/model`."""
    run_id = uri.removeprefix("runs:/").partition("/")[0]
    versions = client.search_model_versions(f"run_id = '{run_id}'") if run_id.isalnum() else []
    if not versions:
        raise UserError(f"model {uri!r}: no registered version comes from that run; give one: models:/fmnist-search/1")
    return max(versions, key=lambda version: int(version.version))


def truncate_description(description: str) -> str:
    """Return a description that is not longer than `DESCRIPTION_LIMIT`, with a note if it was cut."""
    if len(description) <= DESCRIPTION_LIMIT:
        return description
    note = f"\n\n*Cut at MLflow's limit; the full card is the artifact `{tags.MODEL_CARD_FILE}` of this version's run.*"
    return description[: DESCRIPTION_LIMIT - len(note)] + note


# ------------------------------------------------------------------------------------------ scores


def read_validation_score(client: MlflowClient, version: ModelVersion) -> ValidationScore | None:
    """Return the validation score of a version with its correctness record; None if its tags do not hold one."""
    stored = version.tags
    try:
        score = ValidationScore(
            mean=float(stored[tags.CONFIRMED_MEAN]),
            std=float(stored[tags.CONFIRMED_STD]),
            seeds=int(stored[tags.CONFIRMED_SEEDS]),
            images=int(stored[tags.VALIDATION_IMAGES]),
            dataset_digest=stored[tags.DATASET_DIGEST],
            split_digest=stored[tags.SPLIT_DIGEST],
        )
    except (KeyError, ValueError):
        return None
    if score.seeds < 1 or score.images < 1:
        return None
    return dataclasses.replace(score, correctness=_read_correctness(client, version, score))


def _read_correctness(client: MlflowClient, version: ModelVersion, score: ValidationScore) -> CorrectnessRecord | None:
    """Return the record that the run of a version holds, if it is the registered one, about the images of its score."""
    if tags.CORRECTNESS not in version.tags or not version.run_id:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(version.run_id, version.tags[tags.CORRECTNESS], folder)
            content = Path(path).read_bytes()
        registered = version.tags.get(tags.CORRECTNESS_DIGEST)  # earlier versions of this program did not store it
        if registered not in (None, content_digest(content)):
            return None
        record = CorrectnessRecord.from_json(content.decode())
    except (MlflowException, OSError, ValueError):
        return None
    digests = (record.dataset_digest, record.split_digest)
    return record if digests == (score.dataset_digest, score.split_digest) else None


def read_test_result(version: ModelVersion) -> tuple[Accuracy, int] | None:
    """Return the test accuracy of a version and how often it was tested; None if it was never tested."""
    return test_result_from_tags(version.tags)


def test_result_from_tags(stored: Mapping[str, str]) -> tuple[Accuracy, int] | None:
    """Return the test accuracy in the tags of a version or a run, and how often it was tested; None if never."""
    if tags.TEST_HITS not in stored:
        return None
    loss = float(stored[tags.TEST_LOSS]) if tags.TEST_LOSS in stored else None
    accuracy = wilson(int(stored[tags.TEST_HITS]), int(stored[tags.TEST_IMAGE_COUNT]), loss)
    return accuracy, int(stored.get(tags.TEST_EVALUATIONS, "1"))


def find_identical(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the newest version of a registered model whose recipes and weights have this digest; None if none has."""
    same = [version for version in all_versions(client, name).values() if version.tags.get(tags.WEIGHTS) == digest]
    return max(same, key=lambda version: int(version.version), default=None)


def read_correct_images(client: MlflowClient, version: ModelVersion, images: int) -> npt.NDArray[np.bool_] | None:
    """Return which of the test images (N,) a version classifies correctly; None if that is not recorded as it was."""
    packed = version.tags.get(tags.TEST_CORRECT)
    try:
        if packed is None and version.run_id and tags.TEST_CORRECT_DIGEST in version.tags:
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(version.run_id, tags.TEST_CORRECT_FILE, folder)
                content = Path(path).read_bytes()
            if content_digest(content) == version.tags[tags.TEST_CORRECT_DIGEST]:
                packed = content.decode()
        return unpack_bits(packed or "", images)
    except (MlflowException, OSError, ValueError):
        return None


def record_correct_images(client: MlflowClient, version: ModelVersion, packed: str) -> None:
    """Store which test images a version classifies correctly, as an artifact; in a tag if its run was deleted."""
    name, number = version.name, str(version.version)
    try:
        client.log_text(version.run_id or "", packed, tags.TEST_CORRECT_FILE)
    except (MlflowException, OSError):
        client.set_model_version_tag(name, number, tags.TEST_CORRECT, packed)
        return
    client.set_model_version_tag(name, number, tags.TEST_CORRECT_DIGEST, content_digest(packed.encode()))
    if tags.TEST_CORRECT in version.tags:
        client.delete_model_version_tag(name, number, tags.TEST_CORRECT)


def record_test_evaluation(client: MlflowClient, version: ModelVersion, accuracy: Accuracy) -> int:
    """Write an evaluation on the test images to the tags of a version; return how many there have been."""
    known = read_test_result(version)
    evaluations = (known[1] if known else 0) + 1
    values = {
        tags.ACCURACY_TEST: tags.accuracy_tag(accuracy),
        tags.TEST_HITS: accuracy.correct,
        tags.TEST_IMAGE_COUNT: accuracy.images,
        tags.TEST_EVALUATIONS: evaluations,
        **({tags.TEST_LOSS: accuracy.loss} if accuracy.loss is not None else {}),
    }
    for key, value in values.items():
        client.set_model_version_tag(version.name, str(version.version), key, str(value))
    return evaluations

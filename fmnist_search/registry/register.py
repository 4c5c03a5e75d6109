"""Registers models: a version is created in one step, complete and undecided; `aliases` decides about it.

A promotion that is killed leaves a complete version or none. The models that it has logged and not registered are
deleted by the next promotion under the same name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_search.errors import UserError
from fmnist_search.processes import process_identity
from fmnist_search.recipe.datasets import DEFAULT_DATASET, get_dataset
from fmnist_search.registry import tags
from fmnist_search.registry.model_files import as_global_store
from fmnist_search.registry.promoters import promoter_is_dead
from fmnist_search.registry.versions import all_versions, get_champion, truncate_description, version_number
from fmnist_search.workspace import check_name

PROBED_TAG = "fmnist_search.probe"
"""A tag that no registered model has."""
UNDECIDED_NOTE = "It has not been compared with the champion yet: its promotion is on the way, or was cut short."
"""Part of the description of a version until it is decided. It is stored and never changes."""


def check_model_name(client: MlflowClient, name: str) -> None:
    """Make sure that a model can be registered under the name, before anything is trained for it.

    Raises:
        UserError: if it is not a name for a model, or the name of a prompt in MLflow.
    """
    check_name("finalists.model_name", name)
    try:
        client.get_registered_model(name)
    except MlflowException as error:  # the same for a name that does not exist and for a prompt
        if error.error_code == "PERMISSION_DENIED":
            _reserve_name(client, name, error)
            return
        if client.get_prompt(name):
            raise UserError(
                f"finalists.model_name: {name!r} is the name of a prompt in MLflow; choose another (--model-name)"
            ) from None


def _reserve_name(client: MlflowClient, name: str, denied: MlflowException) -> None:
    """Create the registered model if there is none, else raise `denied`.

    A server that hides what a user may not read also hides whether it exists, until one creates it.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        raise denied from error


def probe_registration(client: MlflowClient, name: str) -> None:
    """Make a call that changes nothing, and that a server refuses to users who may not register under this name.

    Raises:
        MlflowException: with the code PERMISSION_DENIED, if the user may not.
    """
    try:
        if client.search_registered_models(f"name = '{name}'"):
            client.delete_registered_model_tag(name, PROBED_TAG)
        else:
            client.create_registered_model("")  # permissions are checked before names, and this is not a name
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise


def pending_tags(name: str) -> dict[str, str]:
    """Return the tags of a logged model that this process is going to register under the name."""
    return {tags.REGISTERED_MODEL: name, tags.PROMOTER: process_identity()}


def register_version(
    client: MlflowClient, name: str, model_uri: str, run_id: str, version_tags: Mapping[str, str], description: str
) -> str:
    """Create a new version of a registered model, which is created if it does not exist; return the version.

    The version is complete from the start, with tags and description, and undecided.
    """
    _create_described(client, name, version_tags.get(tags.DATASET, DEFAULT_DATASET))
    model_id = model_uri.removeprefix("models:/")
    version_tags = {**version_tags, **snapshot_tags(client, name), tags.PROMOTER: process_identity()}
    with as_global_store(client.tracking_uri):
        version = client.create_model_version(
            name,
            source=model_uri,
            run_id=run_id,
            tags=dict(version_tags),
            description=truncate_description(description),
            model_id=model_id,
        )
    with contextlib.suppress(MlflowException):  # the version is registered, whether the mark is removed or not
        client.delete_logged_model_tag(model_id, tags.PROMOTER)
    return str(version.version)


def _create_described(client: MlflowClient, name: str, dataset: str) -> None:
    """Create a registered model unless it exists, and describe it unless somebody has described it."""
    description = (
        f"Classifiers of {get_dataset(dataset).title}, registered by fmnist-search. The alias `{tags.CHAMPION}` names "
        "the version that has beaten those before it on validation images by more than the noise, "
        f"`{tags.CHALLENGER}` the last one that has not. `models:/{name}@{tags.CHAMPION}` loads the champion."
    )
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, description)


def snapshot_tags(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the champion and the number of versions as tags; no tags while a version is undecided."""
    versions = all_versions(client, name)
    champion = get_champion(client, name)
    undecided = any(is_undecided(version) for version in versions.values())
    if undecided or versions.keys() != all_versions(client, name).keys():
        return {}
    return {
        tags.PREVIOUS_CHAMPION: str(version_number(champion) or 0),
        tags.PREVIOUS_VERSIONS: str(max(versions, default=0)),
    }


def is_undecided(version: ModelVersion) -> bool:
    """Return whether a version was registered by a promotion that has not decided about it."""
    return tags.PROMOTER in version.tags and tags.DECISION not in version.tags


def delete_orphans(client: MlflowClient, name: str, experiment_id: str) -> None:
    """Delete the models of an experiment that promotions under this name have logged and died before registering."""
    logged = client.search_logged_models([experiment_id], filter_string=f"tags.{tags.REGISTERED_MODEL} = '{name}'")
    marked = [model for model in logged if tags.PROMOTER in model.tags]
    registered = {str(version.source) for version in all_versions(client, name).values()} if marked else set()
    for model in marked:
        if model.model_uri in registered:
            client.delete_logged_model_tag(model.model_id, tags.PROMOTER)
        elif promoter_is_dead(model.tags[tags.PROMOTER], model.creation_timestamp):
            client.delete_logged_model(model.model_id)
            if model.source_run_id and client.get_run(model.source_run_id).info.status == "RUNNING":
                client.set_terminated(model.source_run_id)

"""The config that a stored study keeps, and the archive of studies under other names."""

from __future__ import annotations

import tomllib
from datetime import datetime

import optuna

from fmnist_search.config.study_config import StudyConfig

CONFIG_ATTRIBUTE = "config"
"""Attribute of a study: its resolved study file."""


def stored_config(study: optuna.Study) -> StudyConfig | None:
    """Return the config of a stored study; None if the process that created the study has not stored it yet."""
    toml = study.user_attrs.get(CONFIG_ATTRIBUTE)
    return StudyConfig.from_dict(tomllib.loads(toml)) if toml else None


def archive(storage: optuna.storages.BaseStorage, name: str) -> str:
    """Rename a study, with everything it holds; return its new name."""
    archived_as = f"{name} until {datetime.now():%Y-%m-%d %H.%M.%S.%f}"
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=archived_as)
    optuna.delete_study(study_name=name, storage=storage)
    study = optuna.load_study(study_name=archived_as, storage=storage)
    if config := stored_config(study):
        study.set_user_attr(CONFIG_ATTRIBUTE, config.model_copy(update={"name": archived_as}).to_toml())
    return archived_as

"""Changes of a whole study that take several steps: its deletion and its renaming, and what a search must know of them.

While such a change is under way, the study has an attribute that names it. If the process dies, the attribute stays, so
that the same command finishes the change and no search begins in between.
"""

from __future__ import annotations

import json
import shlex

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.search.study_attributes import CONFIG_ATTRIBUTE, stored_config

CHANGE_ATTRIBUTE = "change"
"""Attribute of a study: the words of the `studies` command that is changing it, such as `["rename", "old", "new"]`."""

_STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
_ATTRIBUTES = sa.table("study_user_attributes", sa.column("study_id"), sa.column("key"), sa.column("value_json"))


def check_unchanging(storage: optuna.storages.BaseStorage, name: str, command: list[str] | None = None) -> None:
    """Check that no change of a study was interrupted, other than that of `command`.

    Raises:
        UserError: if one was, with the command that finishes it.
    """
    if name not in optuna.get_all_study_names(storage):
        return
    change = optuna.load_study(study_name=name, storage=storage).user_attrs.get(CHANGE_ATTRIBUTE)
    if change and change != command:
        what = "deletion" if change[0] == "delete" else "renaming"
        words = shlex.join(map(str, change))
        raise UserError(f"study {name!r}: its {what} was interrupted; run `fmnist-search studies {words}` again first")


def begin_change(storage: optuna.storages.BaseStorage, name: str, command: list[str]) -> None:
    """Store that a command changes a study, until the study is deleted or `rename_stored` has renamed it."""
    optuna.load_study(study_name=name, storage=storage).set_user_attr(CHANGE_ATTRIBUTE, command)


def rename_stored(storage: RDBStorage, name: str, renamed: str) -> StudyConfig:
    """Rename a study in Optuna's storage, in one transaction with its study file; return that with the new name.

    Optuna itself can only copy a study, trial by trial.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    stored = stored_config(study)
    assert stored, "a study that is renamed has a study file"
    config = stored.model_copy(update={"name": renamed})
    of_study = _ATTRIBUTES.c.study_id == study._study_id
    with storage.engine.begin() as connection:
        connection.execute(
            sa.update(_STUDIES).where(_STUDIES.c.study_id == study._study_id).values(study_name=renamed)
        )
        connection.execute(
            sa.update(_ATTRIBUTES)
            .where(of_study & (_ATTRIBUTES.c.key == CONFIG_ATTRIBUTE))
            .values(value_json=json.dumps(config.to_toml()))
        )
        connection.execute(sa.delete(_ATTRIBUTES).where(of_study & (_ATTRIBUTES.c.key == CHANGE_ATTRIBUTE)))
    return config

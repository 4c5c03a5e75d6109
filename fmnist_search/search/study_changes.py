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

from fmnist_search.errors import UserError
from fmnist_search.search.requests import move_requests
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
        names = shlex.join(map(str, change[1:]))
        what, remedy = (
            ("deletion", f"fmnist-search studies delete {names}")
            if change[0] == "delete"
            else ("renaming", f"fmnist-search studies rename {names}")
        )
        raise UserError(f"study {name!r}: its {what} was interrupted; run `{remedy}` again first")


class StudyToChange:
    """A study in Optuna's storage that is deleted or renamed. The caller holds its lease."""

    def __init__(self, storage: RDBStorage, name: str):
        self._storage = storage
        self._name = name

    def begin(self, command: list[str]) -> None:
        """Store that a command changes the study, until the study is deleted or renamed.

        Raises:
            UserError: if another change was interrupted.
        """
        check_unchanging(self._storage, self._name, command)
        study = optuna.load_study(study_name=self._name, storage=self._storage)
        study.set_user_attr(CHANGE_ATTRIBUTE, command)

    def delete(self) -> None:
        """Delete the study, and the requests to its searches."""
        move_requests(self._storage, self._name, None)
        optuna.delete_study(study_name=self._name, storage=self._storage)

    def rename(self, renamed: str) -> None:
        """Rename the study and its study file in one transaction. Optuna itself can only copy a study."""
        move_requests(self._storage, self._name, renamed)
        study = optuna.load_study(study_name=self._name, storage=self._storage)
        config = stored_config(study)
        assert config, "a study that is renamed has a study file"
        study_file = json.dumps(config.model_copy(update={"name": renamed}).to_toml())
        is_study, of_study = (table.c.study_id == study._study_id for table in (_STUDIES, _ATTRIBUTES))
        is_config, is_change = (_ATTRIBUTES.c.key == key for key in (CONFIG_ATTRIBUTE, CHANGE_ATTRIBUTE))
        with self._storage.engine.begin() as connection:
            connection.execute(sa.update(_STUDIES).where(is_study).values(study_name=renamed))
            connection.execute(sa.update(_ATTRIBUTES).where(of_study & is_config).values(value_json=study_file))
            connection.execute(sa.delete(_ATTRIBUTES).where(of_study & is_change))

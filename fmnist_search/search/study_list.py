"""The studies of a storage in brief, read from a SQLite file without Optuna, whose import takes half a second.

The tables are those of schema 12, which Optuna has used since version 3.0. If a file has another schema, Optuna reads
it.
"""

from __future__ import annotations

import json
import sqlite3
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.search.damaged_values import check_types
from fmnist_search.sqlite_files import check_sound, open_for_reading
from fmnist_search.workspace import sqlite_path

if TYPE_CHECKING:
    from fmnist_search.search.study_store import StudyStore

SCHEMA_VERSION = 12


@dataclass(frozen=True)
class StudyEntry:
    """A stored study: the number of its trials that have ended, and the best value of a completed one, or None."""

    name: str
    question: str
    trials: int
    best: float | None


def list_studies(url: str) -> list[StudyEntry]:
    """Return the studies of a storage in the order in which they were created; none if there is no storage.

    Raises:
        UserError: if the storage cannot be opened.
    """
    database = sqlite_path(url)
    if database is None:
        return _list_with_optuna(url)
    if is_missing(database):
        return []
    try:
        return _list_from_sqlite(database)
    except (
        sqlite3.Error,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ):  # Optuna reads it, or says what is wrong
        return _list_with_optuna(url)


def _list_from_sqlite(database: Path) -> list[StudyEntry]:
    with open_for_reading(database) as connection:
        if connection.execute("SELECT schema_version FROM version_info").fetchone() != (SCHEMA_VERSION,):
            raise LookupError("another schema")
        check_sound(connection)
        check_types(connection)
        studies = connection.execute(
            "SELECT studies.study_id, study_name, value_json FROM studies JOIN study_user_attributes attributes "
            "ON attributes.study_id = studies.study_id AND key = 'config' ORDER BY studies.study_id"
        ).fetchall()
        results = {study_id: rest for study_id, *rest in connection.execute(_RESULTS)}
    entries = []
    for study_id, name, config in studies:
        trials, best = results.get(study_id, (0, None))
        question = tomllib.loads(json.loads(config))["question"]
        if not isinstance(best, float | int | None) or not isinstance(name, str) or not isinstance(question, str):
            raise LookupError("another type")
        entries.append(StudyEntry(name, question, trials, best))
    return entries


_RESULTS = """
SELECT study_id, COUNT(*), MAX(
    CASE WHEN json_extract(outcome.value_json, '$.state') = 'completed' AND duplicate.trial_id IS NULL THEN
        COALESCE(
            (SELECT value FROM trial_values WHERE trial_id = trials.trial_id AND objective = 0),
            (SELECT intermediate_value FROM trial_intermediate_values WHERE trial_id = trials.trial_id
             ORDER BY step DESC LIMIT 1)
        )
    END
)
FROM trials
JOIN trial_user_attributes recipe ON recipe.trial_id = trials.trial_id AND recipe.key = 'recipe'
JOIN trial_user_attributes outcome ON outcome.trial_id = trials.trial_id AND outcome.key = 'outcome'
LEFT JOIN trial_user_attributes duplicate ON duplicate.trial_id = trials.trial_id AND duplicate.key = 'duplicate_of'
WHERE trials.state IN ('COMPLETE', 'PRUNED', 'FAIL') AND json_extract(outcome.value_json, '$.state') != 'refused'
GROUP BY study_id
"""
"""The trials of each study that have ended, as `trial_attributes.trial_record` reads them."""


def _list_with_optuna(url: str) -> list[StudyEntry]:
    from fmnist_search.results.study import rank_trials
    from fmnist_search.results.training import TrialState
    from fmnist_search.search.study_store import StudyStore

    entries = []
    for name in StudyStore.study_names(url):
        study = StudyStore.load(url, name)
        records = study.trial_records()
        best = next(iter(rank_trials(records)), None)
        count = sum(record.state is not TrialState.REFUSED for record in records)
        entries.append(StudyEntry(name, study.config.question, count, best.value if best else None))
    return entries


def load_studies(url: str) -> list[StudyStore]:
    """Return all stored studies in the order in which they were created, opening the storage once.

    A study that its search has only just created, and not yet described, is left out.

    Raises:
        UserError: if there is no storage or no study in it, or if the storage cannot be opened.
    """
    import optuna

    from fmnist_search.search.storage import NO_STUDY_YET, open_storage
    from fmnist_search.search.study_attributes import stored_config
    from fmnist_search.search.study_store import StudyStore

    storage = open_storage(url, create=False)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    found = [StudyStore(study, config) for study in studies if (config := stored_config(study))]
    if not found:
        raise UserError(f"{url}: {NO_STUDY_YET}")
    return found

"""What is stored about a study beside its trials, and the archive of studies under other names."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.champion import Champion, SelectedRecipe
from fmnist_search.search.damaged_values import damaged_values
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.trial_attributes import (
    REBUILT_RUNS_ATTRIBUTE,
    TrialRecords,
    champion_from_dict,
    champion_to_dict,
    selected_from_dict,
    selected_to_dict,
)

CONFIG_ATTRIBUTE = "config"
"""Attribute of a study: its resolved study file."""

PROMOTION_ATTRIBUTE = "promotion"
"""Attribute of a study: what its last promotion has selected."""


LOSSES_ATTRIBUTE = "worker_losses"
"""Attribute of a study: how many workers were lost by no fault of their trials."""


@dataclasses.dataclass(frozen=True)
class StudyRuntime:
    """How the trials of a study are run: decided once for each study, so that its trials are comparable."""

    execution: Execution
    precision: str


class StudyAttributes:
    """The attributes of a study that name its run, its champion and its times."""

    def __init__(self, study: optuna.Study):
        self._study = study
        self._worker_losses: int | None = None
        self._runtime: StudyRuntime | None = None

    def check_lease(self) -> None:
        """Check that this process still drives the study, before something is stored outside of Optuna's storage.

        Raises:
            LeaseLost: if another process has taken the study over.
        """
        if isinstance(self._study._storage, DriverStorage):
            self._study._storage.check_lease()

    def _transaction(self) -> AbstractContextManager[None]:
        """Return a context in which what a driver changes of its trials is stored in one transaction."""
        storage = self._study._storage
        return storage.transaction() if isinstance(storage, DriverStorage) else nullcontext()

    @property
    def runtime(self) -> StudyRuntime | None:
        """How its trials are run; None before that was decided."""
        if self._runtime is None and (stored := self._study.user_attrs.get("conditions")):
            self._runtime = StudyRuntime(Execution(**stored["execution"]), stored["precision"])
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: StudyRuntime) -> None:
        self._study.set_user_attr("conditions", dataclasses.asdict(runtime))
        self._runtime = runtime

    @property
    def run_id(self) -> str | None:
        """The ID of the study's run in MLflow."""
        run_id: str | None = self._study.user_attrs.get("mlflow_run_id")
        return run_id

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr("mlflow_run_id", run_id)

    @property
    def searched_seconds(self) -> float:
        """Seconds of searching so far, in all sessions; in studies of earlier versions those of the trials."""
        stored = self._study.user_attrs.get("searched_seconds")
        if stored is None:
            return sum(record.seconds for record in TrialRecords(self._study).all())
        return float(stored)

    @searched_seconds.setter
    def searched_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("searched_seconds", seconds)

    @property
    def tracking_seconds(self) -> float:
        """Seconds that MLflow took to record the trials, beside their training."""
        with damaged_values(f"study {self._study.study_name!r}"):
            return float(self._study.user_attrs.get("tracking_seconds", 0.0))

    @tracking_seconds.setter
    def tracking_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("tracking_seconds", seconds)

    @property
    def worker_losses(self) -> int:
        """How many workers were lost by no fault of their trials, in all sessions."""
        if self._worker_losses is None:
            with damaged_values(f"study {self._study.study_name!r}"):
                self._worker_losses = int(self._study.user_attrs.get(LOSSES_ATTRIBUTE, 0))
        return self._worker_losses

    def count_worker_loss(self) -> None:
        """Store that another worker was lost by no fault of its trial."""
        losses = self.worker_losses + 1
        self._study.set_user_attr(LOSSES_ATTRIBUTE, losses)
        self._worker_losses = losses

    @property
    def stored_backend(self) -> str | None:
        """The `execution.backend` with which the study was searched last; None for a new study."""
        config = stored_config(self._study)
        return config.execution.backend if config else None

    @property
    def champion(self) -> tuple[str, Champion] | None:
        """The selection key and the champion of the last promotion; None if its version was found deleted."""
        stored = self._study.user_attrs.get("champion")
        with damaged_values(f"study {self._study.study_name!r}"):
            return (stored["fingerprint"], champion_from_dict(stored)) if stored and "deleted" not in stored else None

    @property
    def deleted_champion_key(self) -> str | None:
        """The selection key of a champion whose version was found deleted."""
        stored = self._study.user_attrs.get("champion", {})
        return str(stored["fingerprint"]) if "deleted" in stored else None

    @property
    def searched_selection(self) -> str | None:
        """The selection key of the last promotion by a search; a promotion on request does not change it."""
        return self._study.user_attrs.get("searched_selection")

    @searched_selection.setter
    def searched_selection(self, key: str) -> None:
        self._study.set_user_attr("searched_selection", key)

    def mark_champion_deleted(self) -> None:
        """Store that the version of the champion has been deleted in the registry."""
        self._study.set_user_attr("champion", {**self._study.user_attrs["champion"], "deleted": True})

    def save_champion(self, selection_key: str, champion: Champion) -> None:
        """Store a champion, so that the same finalists are not trained again; the open promotion has ended then."""
        promotion = self._study.user_attrs.get(PROMOTION_ATTRIBUTE, {}).get("key")
        stored = {"fingerprint": selection_key, "promotion": promotion, **champion_to_dict(champion)}
        self._study.set_user_attr("champion", stored)

    @property
    def open_promotion(self) -> SelectedRecipe | None:
        """What a promotion has selected whose champion is not stored yet; None if there is none."""
        stored, champion = self._study.user_attrs.get(PROMOTION_ATTRIBUTE), self._study.user_attrs.get("champion", {})
        if not stored or stored["key"] == champion.get("promotion"):
            return None
        return selected_from_dict(stored)

    def save_promotion(self, selected: SelectedRecipe) -> None:
        """Store what a promotion has selected, before its model is registered."""
        self._study.set_user_attr(PROMOTION_ATTRIBUTE, selected_to_dict(selected))

    def remember_rebuilt_runs(self, run_ids: Mapping[str, str]) -> None:
        """Store the ids of runs that replace those that trials name."""
        changed = {old: new for old, new in run_ids.items() if old != new}
        known = self._study.user_attrs.get(REBUILT_RUNS_ATTRIBUTE, {})
        self._study.set_user_attr(REBUILT_RUNS_ATTRIBUTE, {**known, **changed})


def stored_config(study: optuna.Study) -> StudyConfig | None:
    """Return the config of a stored study; None if the process that created the study has not stored it yet."""
    toml = study.user_attrs.get(CONFIG_ATTRIBUTE)
    with damaged_values(f"study {study.study_name!r}"):
        return StudyConfig.from_dict(_with_later_keys(tomllib.loads(toml))) if toml else None


def _with_later_keys(tables: dict[str, Any]) -> dict[str, Any]:
    """Return a stored study with the keys that were added later, set to what was done before."""
    sampler = tables.get("sampler")
    if isinstance(sampler, dict) and sampler.get("name") == "tpe":
        return {**tables, "sampler": {"window": 0, **sampler}}
    return tables


def archive(storage: optuna.storages.BaseStorage, name: str) -> str:
    """Rename a study, with everything it holds; return its new name."""
    archived_as = f"{name} until {datetime.now():%Y-%m-%d %H.%M.%S.%f}"
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=archived_as)
    optuna.delete_study(study_name=name, storage=storage)
    study = optuna.load_study(study_name=archived_as, storage=storage)
    if config := stored_config(study):
        study.set_user_attr(CONFIG_ATTRIBUTE, config.model_copy(update={"name": archived_as}).to_toml())
    return archived_as

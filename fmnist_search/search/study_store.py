"""A study's trials as Optuna keeps them: the truth of a search, whatever MLflow shows."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from fmnist_search.config.sections import OneEpoch
from fmnist_search.config.space import Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import Importances, TrialRecord
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.search.analysis import importances
from fmnist_search.search.pruners import SURVIVOR_OF_ATTRIBUTE, make_pruner, pruner_applies
from fmnist_search.search.samplers import ConditionalGridSampler, make_sampler
from fmnist_search.search.storage import open_storage
from fmnist_search.search.suggest import base_recipe, sample_with_fixed, suggest_recipe, to_optuna_params, trial_seed
from fmnist_search.search.trial_attributes import (
    OUTCOME_ATTRIBUTE,
    RECIPE_ATTRIBUTE,
    champion_from_dict,
    champion_to_dict,
    duplicate_outcome_attribute,
    has_ended,
    outcome_attribute,
    trial_record,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

FINISHED_STATES = (OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL)

CONFIG_ATTRIBUTE = "config"
"""Attribute of a study: its file, as it was resolved."""

WORKER_LOST_ATTRIBUTE = "lost"
"""Attribute of a trial that is tried again since the worker of its first attempt died."""

FIXED_VALUES_ATTRIBUTE = "given"
"""Attribute of a trial whose recipe the space does not hold, as it was given."""
COPIED_ON_RETRY = ("start", FIXED_VALUES_ATTRIBUTE, SURVIVOR_OF_ATTRIBUTE, WORKER_LOST_ATTRIBUTE)


@dataclasses.dataclass(frozen=True)
class StudyRuntime:
    """How the trials of a study are run: decided when it begins, and kept, so that they stay comparable."""

    execution: Execution
    precision: str


class StudyStore:
    """One study in Optuna's storage."""

    def __init__(self, study: optuna.Study, config: StudyConfig):
        self._study = study
        self.config = config
        self.archived_as: str | None = None
        self.widened_ranges: list[str] = []
        self._candidates: set[int] = set()  # that run: whatever is trained for the first time
        study.sampler = make_sampler(config.sampler, config.seed, config.space)
        study.pruner = make_pruner(config.pruner, config.budget.epochs)

    @classmethod
    def open(cls, url: str, config: StudyConfig, *, fresh: bool = False) -> StudyStore:
        """The study of that name, made where it is missing.

        With `fresh`, an earlier one is put aside first: `archived_as` is its new name. Ranges may be wider than those
        the study began with: `widened_ranges` says which are.

        Raises:
            UserError: the stored study searches something else: one line for each key that differs.
        """
        storage = open_storage(url)
        aside = None
        if fresh and config.name in optuna.get_all_study_names(storage):
            aside = f"{config.name} until {datetime.now():%Y-%m-%d %H.%M.%S.%f}"
            optuna.copy_study(
                from_study_name=config.name, from_storage=storage, to_storage=storage, to_study_name=aside
            )
            optuna.delete_study(study_name=config.name, storage=storage)
            copy = optuna.load_study(study_name=aside, storage=storage)
            if CONFIG_ATTRIBUTE in copy.user_attrs:
                copy.set_user_attr(CONFIG_ATTRIBUTE, _stored_config(copy).model_copy(update={"name": aside}).to_toml())
        study = optuna.create_study(storage=storage, study_name=config.name, direction="maximize", load_if_exists=True)
        widened = _widened_ranges(_stored_config(study), config) if CONFIG_ATTRIBUTE in study.user_attrs else []
        ledger = cls(study, config)
        study.set_user_attr(CONFIG_ATTRIBUTE, config.to_toml())
        ledger.widened_ranges = widened
        ledger.archived_as = aside
        return ledger

    @classmethod
    def load(cls, url: str, name: str) -> StudyStore:
        """A study that is there already.

        Raises:
            UserError: it is not; the nearest name is. Or its search is only just making it, or was killed over that.
        """
        storage = open_storage(url, create=False)
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = did_you_mean(name, names) if names else "there is none yet; run `fmnist-search search STUDY.toml`"
            raise UserError(f"study {name!r}: does not exist here; {known}")
        study = optuna.load_study(study_name=name, storage=storage)
        if CONFIG_ATTRIBUTE not in study.user_attrs:
            raise UserError(f"study {name!r}: has only just been made; look again in a moment, or search it again")
        return cls(study, _stored_config(study))

    @staticmethod
    def study_names(url: str) -> list[str]:
        """The studies of a storage, the one that was begun last at the end."""
        return list(optuna.get_all_study_names(open_storage(url, create=False)))

    # ------------------------------------------------------------------------------ of the study

    @property
    def runtime(self) -> StudyRuntime | None:
        """How its trials are run; None before that was decided."""
        stored = self._study.user_attrs.get("conditions")
        return StudyRuntime(Execution(**stored["execution"]), stored["precision"]) if stored else None

    @runtime.setter
    def runtime(self, conditions: StudyRuntime) -> None:
        self._study.set_user_attr("conditions", dataclasses.asdict(conditions))

    @property
    def run_id(self) -> str | None:
        """The study's run in MLflow."""
        run_id: str | None = self._study.user_attrs.get("mlflow_run_id")
        return run_id

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr("mlflow_run_id", run_id)

    @property
    def searched_seconds(self) -> float:
        """How long the study has searched so far, in all its sessions."""
        stored = self._study.user_attrs.get("searched_seconds")
        return sum(row.seconds for row in self.trial_records()) if stored is None else float(stored)

    @searched_seconds.setter
    def searched_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("searched_seconds", seconds)

    @property
    def tracking_seconds(self) -> float:
        """How long MLflow took to keep the record of the trials, beside their training."""
        return float(self._study.user_attrs.get("tracking_seconds", 0.0))

    @tracking_seconds.setter
    def tracking_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("tracking_seconds", seconds)

    @property
    def champion(self) -> tuple[str, Champion] | None:
        """The last champion, and the fingerprint of what it was chosen from."""
        stored = self._study.user_attrs.get("champion")
        return (stored["fingerprint"], champion_from_dict(stored)) if stored else None

    def save_champion(self, selection_key: str, champion: Champion) -> None:
        """Remember a champion, so that the same finalists are not trained again."""
        self._study.set_user_attr("champion", {"fingerprint": selection_key, **champion_to_dict(champion)})

    def importances(self) -> Importances:
        """Which hyperparameters decide; UserError where too few trials have completed."""
        return importances(self._study)

    @property
    def is_exhausted(self) -> bool:
        """Whether a grid has no recipe left."""
        if not self._grid_is_exhausted() or self._next_survivor() is not None:
            return False
        return not self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    # ----------------------------------------------------------------------------- of its trials

    def enqueue_start(self, source: str, given: Mapping[str, Value]) -> str | None:
        """Try a recipe before the sampler is asked, once a study; what is not given of it is drawn.

        Says how it will be tried, or None where it stands in the study already.

        Raises:
            UserError: it is no recipe, or the space does not hold it and the study refuses such recipes.
        """
        params, outside = start_params(self.config, source, given)
        key = json.dumps([source, dict(given)], sort_keys=True)
        queued = self._study.user_attrs.get("started_with", [])
        if key in queued:
            return None
        attributes: dict[str, Any] = {"start": source}
        if outside:
            self._study.enqueue_trial({}, user_attrs={**attributes, FIXED_VALUES_ATTRIBUTE: dict(given)})
        else:
            self._study.enqueue_trial(params, user_attrs=attributes)
        self._study.set_user_attr("started_with", [*queued, key])
        return f"{source} is tried first" + (f", outside the space: {'; '.join(outside)}" if outside else "")

    def trial_records(self) -> list[TrialRecord]:
        """All trials that ended, in their order."""
        return [
            trial_record(trial)
            for trial in self._study.get_trials(deepcopy=False, states=FINISHED_STATES)
            if has_ended(trial)
        ]

    def ask(self) -> tuple[optuna.Trial, Recipe]:
        """The next trial and what it is to train; an interrupted trial comes again first, with its seed."""
        assert self.runtime is not None
        self._enqueue_survivor()
        trial = self._study.ask()
        if SURVIVOR_OF_ATTRIBUTE not in trial.user_attrs:
            self._candidates.add(trial.number)
        base = base_recipe(self.config, self.runtime.precision)
        attributes = trial.user_attrs
        seed = attributes.get("seed", trial_seed(self.config.seed, trial.number))
        if FIXED_VALUES_ATTRIBUTE in attributes:
            recipe = sample_with_fixed(self.config.space, base, attributes[FIXED_VALUES_ATTRIBUTE], seed)
        else:
            recipe = suggest_recipe(trial, self.config.space, base, seed)
        trial.set_user_attr(RECIPE_ATTRIBUTE, recipe.to_flat_dict())
        return trial, recipe

    def _enqueue_survivor(self) -> None:
        """Under the one-epoch rule: the last trials of the budget are the best candidates, with their seeds."""
        survivor = self._next_survivor()
        waiting = self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        if survivor is not None and not waiting:
            candidate = self._study.get_trials(deepcopy=False)[survivor.number]
            kept = {name: value for name, value in candidate.user_attrs.items() if name == FIXED_VALUES_ATTRIBUTE}
            attributes = {**kept, "seed": survivor.recipe.seed, SURVIVOR_OF_ATTRIBUTE: survivor.number}
            self._study.enqueue_trial(candidate.params, user_attrs=attributes)

    @property
    def waits_for_running(self) -> bool:
        """Whether what is asked next depends on trials that still run: the best candidates of the one-epoch rule."""
        return bool(self._candidates) and self._has_all_candidates(len(self._candidates))

    def _has_all_candidates(self, running: int) -> bool:
        pruner, limit = self.config.pruner, self.config.budget.trials
        if not isinstance(pruner, OneEpoch) or limit is None:
            return False
        return len(self._candidate_records()) + running >= limit - pruner.survivors or self._grid_is_exhausted()

    def _candidate_records(self) -> list[TrialRecord]:
        return [row for row in self.trial_records() if row.duplicate_of is None and row.is_final]

    def _next_survivor(self) -> TrialRecord | None:
        if not self._has_all_candidates(0):
            return None
        rows = self._candidate_records()
        trials = self._study.get_trials(deepcopy=False)
        promoted = {trial.user_attrs.get(SURVIVOR_OF_ATTRIBUTE) for trial in trials}
        left = [row for row in rows if row.state is TrialState.PRUNED and row.number not in promoted]
        candidates = [row for row in left if SURVIVOR_OF_ATTRIBUTE not in trials[row.number].user_attrs]
        return max(candidates, key=lambda row: (row.value or 0.0, -row.number), default=None)

    def _grid_is_exhausted(self) -> bool:
        sampler = self._study.sampler
        return isinstance(sampler, ConditionalGridSampler) and sampler.is_exhausted(self._study)

    def should_prune(self, trial: optuna.Trial, report: EpochReport) -> bool:
        """Report an epoch, and say whether the trial is to end here."""
        assert report.val_accuracy is not None
        trial.report(report.val_accuracy, report.epoch)
        if not trial.should_prune():
            return False
        trials = self._study.get_trials(deepcopy=False)
        return pruner_applies(trials, self.config.pruner, report.epoch, self.config.budget.epochs)

    def tell(
        self,
        trial: optuna.Trial,
        result: TrialResult,
        run_id: str,
        overhead: Overhead = Overhead(),  # noqa: B008
        *,
        worker_lost: bool = False,
    ) -> TrialRecord:
        """Write down how a trial ended; one that was interrupted is put first in the queue.

        So is, once, one whose worker was `worker_lost`.
        """
        self._candidates.discard(trial.number)
        comes_again = result.state is TrialState.INTERRUPTED or (
            worker_lost and WORKER_LOST_ATTRIBUTE not in trial.user_attrs
        )
        trial.set_user_attr(OUTCOME_ATTRIBUTE, outcome_attribute(result, run_id, overhead, will_retry=comes_again))
        if FIXED_VALUES_ATTRIBUTE in trial.user_attrs:
            # Optuna would take a trial without parameters for a sign that nothing is shared by all.
            told = self._study.tell(trial, state=OptunaState.FAIL)
        elif result.state is TrialState.COMPLETED:
            told = self._study.tell(trial, result.value)
        elif result.state is TrialState.PRUNED:
            told = self._study.tell(trial, state=OptunaState.PRUNED)
        else:
            told = self._study.tell(trial, state=OptunaState.FAIL)
        if comes_again:
            kept = {name: value for name, value in trial.user_attrs.items() if name in COPIED_ON_RETRY}
            kept |= {WORKER_LOST_ATTRIBUTE: True} if worker_lost else {}
            seed = trial.user_attrs[RECIPE_ATTRIBUTE]["seed"]
            self._study.enqueue_trial(trial.params, user_attrs={**kept, "seed": seed, "retry_of": trial.number})
        return trial_record(told)

    def tell_duplicate(self, trial: optuna.Trial, original: TrialRecord) -> TrialRecord:
        """Answer a trial from an earlier equal one, so that the sampler learns that it asked again."""
        self._candidates.discard(trial.number)
        trial.set_user_attr("duplicate_of", original.number)
        trial.set_user_attr(OUTCOME_ATTRIBUTE, duplicate_outcome_attribute(original))
        assert original.value is not None
        if original.state is TrialState.COMPLETED and FIXED_VALUES_ATTRIBUTE not in trial.user_attrs:
            return trial_record(self._study.tell(trial, original.value))
        trial.report(original.value, original.epochs)
        state = OptunaState.FAIL if FIXED_VALUES_ATTRIBUTE in trial.user_attrs else OptunaState.PRUNED
        return trial_record(self._study.tell(trial, state=state))


def start_params(config: StudyConfig, source: str, given: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """Optuna's parameters of a recipe to start with, and what of it the space does not hold.

    Raises:
        UserError: it is no recipe, or the space does not hold it and the study refuses such recipes.
    """
    try:
        params, outside = to_optuna_params(config.space, base_recipe(config, "float32"), given)
    except UserError as error:
        raise UserError(*(f"start.recipes: {source}: {line}" for line in error.lines)) from None
    if outside and config.start.outside == "refuse":
        remedy = "widen the space, or try it all the same with start.outside = 'try'"
        raise UserError(*(f"start.recipes: {source}: {reason}; {remedy}" for reason in outside))
    return params, outside


def _stored_config(study: optuna.Study) -> StudyConfig:
    return StudyConfig.from_dict(tomllib.loads(study.user_attrs[CONFIG_ATTRIBUTE]))


def _widened_ranges(stored: StudyConfig, given: StudyConfig) -> list[str]:
    """Which ranges were widened; UserError for whatever else makes the trials incomparable."""
    before, now = stored.comparability_key(), given.comparability_key()
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    old, new = dict(stored.domains()), dict(given.domains())
    widened = [key for key in changed if _is_widened(old.get(key), new.get(key))]
    if refused := [key for key in changed if key not in widened]:
        raise UserError(
            *(
                f"{key}: is {now.get(key, 'not given')} now and was {before.get(key, 'not given')} when the study "
                f"{given.name!r} began{_widening_hint(old.get(key))}; choose another name (--name), or begin anew "
                f"with --fresh"
                for key in refused
            )
        )
    return [f"{key} is wider now: {now[key]}; it was {before[key]}" for key in widened]


def _is_widened(before: Domain | None, now: Domain | None) -> bool:
    return isinstance(before, Range) and now is not None and before.is_widened_by(now)


def _widening_hint(before: Domain | None) -> str:
    return " (a range may be widened, nothing else)" if isinstance(before, Range) else ""

"""The one-epoch rule (arXiv 2307.15422): all candidates train a single epoch, the best few then train in full."""

from __future__ import annotations

import math

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fmnist_search.config.pruners import OneEpoch, Pruner
from fmnist_search.config.sections import Budget
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.samplers import is_exhausted
from fmnist_search.search.trial_attributes import (
    FIXED_VALUES_ATTRIBUTE,
    SEED_ATTRIBUTE,
    SURVIVOR_OF_ATTRIBUTE,
    TrialRecords,
)


class OneEpochPruner(optuna.pruners.BasePruner):
    """Prunes each candidate after `epochs` epochs; a survivor is trained in full as a further trial."""

    def __init__(self, epochs: int):
        self._epochs = epochs

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is a candidate that has been trained for its epochs."""
        return SURVIVOR_OF_ATTRIBUTE not in trial.user_attrs and (trial.last_step or 0) >= self._epochs


class SurvivorQueue:
    """Queues the survivors of a study under the one-epoch rule; does nothing in a study with another pruner.

    The last `pruner.survivors` trials of the budget are survivors: they repeat the best candidates, the best first.
    """

    def __init__(self, study: optuna.Study, records: TrialRecords, pruner: Pruner, budget: Budget):
        self._study = study
        self._records = records
        self._ended_count: int | None = None
        self._candidate_count: int | None = None
        self._max_seconds = budget.max_seconds_per_epoch or math.inf
        if isinstance(pruner, OneEpoch) and budget.trials is not None:
            self._candidate_count = budget.trials - pruner.survivors
        self._running_candidates: set[int] = set()

    def add_running(self, trial: optuna.Trial) -> None:
        """Record that a trial has been asked for."""
        if SURVIVOR_OF_ATTRIBUTE not in trial.user_attrs:
            self._running_candidates.add(trial.number)

    def remove_running(self, number: int) -> None:
        """Record that a trial has ended."""
        self._running_candidates.discard(number)

    def add_ended(self, record: TrialRecord) -> None:
        """Count a trial that has ended."""
        if self._ended_count is not None:
            self._ended_count += _is_first_training(record)

    def count_again(self) -> None:
        """Count the trials again when their number is needed next: some have ended that were not added."""
        self._ended_count = None

    @property
    def waits_for_running(self) -> bool:
        """Whether the next trial is a survivor that cannot be chosen before the running candidates have ended."""
        return bool(self._running_candidates) and self._has_all_candidates(len(self._running_candidates))

    def enqueue_next(self) -> None:
        """Queue the next survivor with the values and the seed of its candidate, unless a trial already waits."""
        survivor = self.next_survivor()
        if survivor is None or self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,)):
            return
        candidate = self._study.get_trials(deepcopy=False)[survivor.number]
        attributes = {name: value for name, value in candidate.user_attrs.items() if name == FIXED_VALUES_ATTRIBUTE}
        attributes |= {SEED_ATTRIBUTE: survivor.recipe.seed, SURVIVOR_OF_ATTRIBUTE: survivor.number}
        self._study.enqueue_trial(candidate.params, user_attrs=attributes)

    def next_survivor(self) -> TrialRecord | None:
        """Return the best candidate that is not trained in full yet; None before all candidates have ended."""
        if not self._has_all_candidates(running=0):
            return None
        trials = self._study.get_trials(deepcopy=False)
        promoted = {trial.user_attrs.get(SURVIVOR_OF_ATTRIBUTE) for trial in trials}
        candidates = [
            record
            for record in self._first_trainings()
            if record.state is TrialState.PRUNED
            and record.seconds_per_epoch <= self._max_seconds
            and record.number not in promoted
            and SURVIVOR_OF_ATTRIBUTE not in trials[record.number].user_attrs
        ]
        return max(candidates, key=lambda record: (record.value or 0.0, -record.number), default=None)

    def _has_all_candidates(self, running: int) -> bool:
        if self._candidate_count is None:
            return False
        if self._ended_count is None:
            self._ended_count = len(self._first_trainings())
        return self._ended_count + running >= self._candidate_count or is_exhausted(self._study)

    def _first_trainings(self) -> list[TrialRecord]:
        return [record for record in self._records.all() if _is_first_training(record)]


def _is_first_training(record: TrialRecord) -> bool:
    return record.duplicate_of is None and record.is_final

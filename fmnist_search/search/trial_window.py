"""The trials that a sampler learns from: at most so many, so that asking costs the same however many a study has."""

from __future__ import annotations

import bisect
import copy
import itertools
import math
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.samplers._tpe.sampler import _split_complete_trials
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE

MAX_BEST = 25
"""Optuna's TPE models the best tenth of the trials that have ended as the good ones, but not more than so many."""

MAX_RUNNING = 64
"""The newest running trials of the window. TPE takes them as bad ones, so that trials of the same time differ."""

Rank = tuple[float, ...]


def best_count(size: int) -> int:
    """Return how many of the trials in a window of this size are its best ones."""
    return min(math.ceil(size / 10), MAX_BEST)


class TrialWindow:
    """The best and the newest trials of a study that is maximized.

    Of the trials that have completed or were pruned, it holds the best tenth of `size`, at most `MAX_BEST`, and the
    newest of the others, `size` in all. Of those that are running it holds the newest `size`, at most `MAX_RUNNING`.
    Best is meant as in Optuna's TPE: completed trials by value, then pruned ones by their last step and its value.
    Newest is meant by number, so that the window depends only on the states of the trials. Without `size` it holds all.

    What has ended does not change any more and is looked at once, so that a selection takes time for the window and for
    the trials that have not ended.
    """

    def __init__(self, size: int | None):
        self.size = size
        self._ended = _EndedTrials(size or 0)
        self._not_ended: list[int] = []
        self._seen = 0

    def select(self, trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
        """Return what the trial of this number may learn from, by number; `trials` are all trials of the study."""
        if self.size is None:
            return list(trials)
        unknown = itertools.chain(self._not_ended, range(self._seen, len(trials)))
        not_ended = [n for n in unknown if self._add(trials[n])]
        self._not_ended, self._seen = not_ended, len(trials)
        running = [n for n in not_ended if trials[n].state is TrialState.RUNNING and n != number]
        ended = self._ended
        if paused := [n for n in not_ended if trials[n].state in _LEARNED_FROM]:
            ended = copy.deepcopy(ended)
            for n in paused:
                ended.add(trials[n])
        return [trials[n] for n in sorted([*ended.window(), *running[-min(self.size, MAX_RUNNING) :]])]

    def _add(self, trial: FrozenTrial) -> bool:
        """Add a trial if it has ended; return whether it may still change. A paused one is shown as pruned."""
        if not trial.state.is_finished() or trial.user_attrs.get(PAUSED_ATTRIBUTE) is not None:
            return True
        if trial.state in _LEARNED_FROM:
            self._ended.add(trial)
        return False


_LEARNED_FROM = (TrialState.COMPLETE, TrialState.PRUNED)


class _EndedTrials:
    """The numbers of the best and of the newest trials that have ended."""

    def __init__(self, size: int):
        self._size = size
        self._best_count = best_count(size)
        self._best: list[tuple[Rank, int]] = []
        self._newest: list[int] = []

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        bisect.insort(self._best, (_rank(trial), trial.number))
        bisect.insort(self._newest, trial.number)
        del self._best[self._best_count :], self._newest[: -self._size]

    def window(self) -> set[int]:
        """Return the numbers of the trials of the window."""
        best = {number for _, number in self._best}
        others = [number for number in self._newest if number not in best]
        return best.union(others[max(0, len(others) + len(best) - self._size) :])


def _rank(trial: FrozenTrial) -> Rank:
    """Return what Optuna's TPE sorts trials by, the best first."""
    if trial.state is TrialState.COMPLETE:
        assert trial.value is not None
        return 0, -trial.value
    if not trial.intermediate_values:
        return 1, 1, 0.0
    step, value = max(trial.intermediate_values.items())
    return 1, -step, math.inf if math.isnan(value) else -value


class FrontWindow:
    """What `TrialWindow` holds, of a study with two objectives.

    Its best completed trials are those that Optuna's TPE takes as the good ones: by rank of non-domination, and within
    a rank by the hypervolume that they add. Trials that were pruned or are paused have no second value, and are not
    learned from. A selection looks at the values of all completed trials.
    """

    def __init__(self, size: int | None):
        self._size = size

    def select(self, study: optuna.Study, trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
        """Return what the trial of this number may learn from, by number; `trials` are all trials of the study."""
        completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        running = [trial for trial in trials if trial.state is TrialState.RUNNING and trial.number != number]
        if self._size is None:
            return sorted([*completed, *running], key=lambda trial: trial.number)
        if len(completed) > self._size:
            best, others = _split_complete_trials(completed, study, best_count(self._size))
            completed = [*best, *others[len(others) + len(best) - self._size :]]
        newest = running[-min(self._size, MAX_RUNNING) :]
        return sorted([*completed, *newest], key=lambda trial: trial.number)


class StudyView:
    """A study as a sampler shall see it: with some of its trials."""

    def __init__(self, window: TrialWindow):
        self._window = window
        self._storage = _ViewStorage()
        self._name = "view"
        self._has_study = False

    def show(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        """Return a study with the trials that this trial may learn from."""
        if not self._has_study:
            self._storage.create_new_study(study.directions, self._name)
            self._has_study = True
        # Not from `study.get_trials`: with Hyperband it returns one bracket, and Optuna's TPE learns from all.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        if len(study.directions) > 1:
            self._storage.trials = FrontWindow(self._window.size).select(study, trials, trial.number)
        else:
            self._storage.trials = self._window.select(trials, trial.number)
        # A new one each time, because it keeps the trials that it has read.
        return optuna.load_study(
            study_name=self._name, storage=self._storage, sampler=study.sampler, pruner=optuna.pruners.NopPruner()
        )

    def store_attributes(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Store in the study what a sampler has stored about a trial, each attribute once."""
        for key, value in self._storage.attributes.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        self._storage.attributes = {}


class _ViewStorage(InMemoryStorage):
    """A storage that shows given trials, and keeps the attributes that a sampler stores about the trial it samples."""

    def __init__(self) -> None:
        super().__init__()
        self.trials: list[FrozenTrial] = []
        self.attributes: dict[str, Any] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the given trials."""
        trials = [trial for trial in self.trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute."""
        self.attributes[key] = value

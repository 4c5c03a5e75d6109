"""The trials of a study as its driver knows them: what it has loaded and what it has written since."""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import math
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE

ALL_STATES = tuple(OptunaState)


class KnownTrials:
    """The trials of a study, by number.

    A trial that changes is replaced by a changed copy, so that a trial or a list of trials that was returned stays as
    it is. A paused trial is shown as pruned.
    """

    def __init__(self, trials: Sequence[FrozenTrial]):
        self._trials: list[FrozenTrial] = []
        self._shown: list[FrozenTrial] = []
        self._places: dict[int, int] = {}
        self._places_by_state: dict[OptunaState, list[int]] = {state: [] for state in ALL_STATES}
        self._lists: dict[tuple[OptunaState, ...], tuple[FrozenTrial, ...]] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        for trial in trials:
            self.add(trial)

    def __len__(self) -> int:
        return len(self._trials)

    @property
    def newest_id(self) -> int:
        """The greatest id of a trial, -1 if there is none."""
        return self._trials[-1]._trial_id if self._trials else -1

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial, the last by number."""
        self._places[trial._trial_id] = len(self._trials)
        shown = as_shown(trial)
        self._places_by_state[shown.state].append(len(self._trials))
        self._trials.append(trial)
        self._shown.append(shown)
        self._forget_lists(shown.state)
        for name, distribution in trial.distributions.items():
            self._distributions.setdefault(name, distribution)

    def get(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it is stored: a paused one is running."""
        return self._trials[self._places[trial_id]]

    def copy_of(self, trial_id: int) -> FrozenTrial:
        """Return a copy of a trial as it is stored, which Optuna changes while the trial runs."""
        trial = copy.copy(self.get(trial_id))
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        trial.intermediate_values = dict(trial.intermediate_values)
        return trial

    def id_of(self, number: int) -> int:
        """Return the id of a trial.

        Raises:
            KeyError: if there is no trial of this number.
        """
        if not 0 <= number < len(self._trials):
            raise KeyError(f"no trial {number}")
        return self._trials[number]._trial_id

    def check_distribution(self, name: str, distribution: BaseDistribution) -> None:
        """Check that a parameter can have this distribution.

        Raises:
            ValueError: if the study's first trial with it had a distribution of another kind or other choices.
        """
        if name in self._distributions:
            check_distribution_compatibility(self._distributions[name], distribution)

    def replace(self, trial: FrozenTrial) -> None:
        """Replace a trial by a changed copy."""
        place = self._places[trial._trial_id]
        before, shown = self._shown[place].state, as_shown(trial)
        self._trials[place], self._shown[place] = trial, shown
        if before is not shown.state:
            old, new = self._places_by_state[before], self._places_by_state[shown.state]
            del old[bisect.bisect_left(old, place)]
            bisect.insort(new, place)
            self._forget_lists(before)
        self._forget_lists(shown.state)

    def shown(self, states: Container[OptunaState] | None) -> list[FrozenTrial]:
        """Return the trials in these states, as samplers and pruners see them; all if None is given."""
        if states is None:
            return list(self._shown)
        wanted = tuple(state for state in ALL_STATES if state in states)
        if wanted not in self._lists:
            places = sorted(itertools.chain.from_iterable(self._places_by_state[state] for state in wanted))
            self._lists[wanted] = tuple(self._shown[place] for place in places)
        return list(self._lists[wanted])

    def _forget_lists(self, state: OptunaState) -> None:
        for wanted in [wanted for wanted in self._lists if state in wanted]:
            del self._lists[wanted]

    # ------------------------------------------------------------------------------------- changes

    def change(self, method: str, trial_id: int, arguments: tuple[Any, ...], at: datetime) -> None:
        """Make the change that a method of Optuna's storage makes."""
        trial = copy.copy(self.get(trial_id))
        getattr(self, f"_{method}")(trial, at, *arguments)
        self.replace(trial)

    def _set_trial_param(
        self, trial: FrozenTrial, _: datetime, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        trial.params = {**trial.params, name: distribution.to_external_repr(value)}
        trial.distributions = {**trial.distributions, name: distribution}
        self._distributions.setdefault(name, distribution)

    def _set_trial_intermediate_value(self, trial: FrozenTrial, _: datetime, step: int, value: float) -> None:
        trial.intermediate_values = {**trial.intermediate_values, step: value}

    def _set_trial_user_attr(self, trial: FrozenTrial, _: datetime, key: str, value: Any) -> None:
        trial.user_attrs = {**trial.user_attrs, key: as_stored(value)}

    def _set_trial_system_attr(self, trial: FrozenTrial, _: datetime, key: str, value: Any) -> None:
        trial.system_attrs = {**trial.system_attrs, key: as_stored(value)}

    def _set_trial_state_values(
        self, trial: FrozenTrial, at: datetime, state: OptunaState, values: Sequence[float] | None = None
    ) -> None:
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state is OptunaState.RUNNING:
            trial.datetime_start = at
        if state.is_finished():
            trial.datetime_complete = at


def as_stored(value: Any) -> Any:
    """Return the value of an attribute as it is when it is loaded again: a tuple is a list, for example."""
    return json.loads(json.dumps(value))


def as_shown(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as samplers and pruners shall see it: a paused one as pruned, with its last value."""
    if trial.state is not OptunaState.RUNNING or trial.user_attrs.get(PAUSED_ATTRIBUTE) is None:
        return trial
    shown = copy.copy(trial)
    shown.state = OptunaState.PRUNED
    shown.datetime_complete = trial.datetime_start
    if (last_step := trial.last_step) is not None and not math.isnan(trial.intermediate_values[last_step]):
        shown.values = [trial.intermediate_values[last_step]]
    return shown

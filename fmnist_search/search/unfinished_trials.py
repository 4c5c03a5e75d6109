"""Trials that have begun and not ended: those that wait to go on, those that are paused, and those of a dead driver.

Such a trial keeps its number, its hyperparameters and its seed. In Optuna's storage, one that waits to go on is
WAITING, so that the next trial that is asked for is this one. One that is paused is RUNNING and has the attribute
`PAUSED_ATTRIBUTE`, because Optuna has no state for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fmnist_search.results.training import TrialResult, TrialState
from fmnist_search.search.trial_attributes import (
    FIXED_VALUES_ATTRIBUTE,
    OUTCOME_ATTRIBUTE,
    PAUSED_ATTRIBUTE,
    RUN_KEY_ATTRIBUTE,
    is_paused,
    outcome_attribute,
)

FindOutcome = Callable[[str], Mapping[str, Any] | None]
"""Returns the outcome that was recorded with the run of this key; None if the run has not ended."""


class UnfinishedTrials:
    """The trials of a study that have begun and not ended."""

    def __init__(self, study: optuna.Study):
        self._study = study
        self._storage = study._storage

    def put_back(self, number: int, outcome: Mapping[str, Any]) -> FrozenTrial:
        """Let a running trial wait to go on, and return it; `outcome` tells why, and how far it was trained."""
        trial_id = self._trial_id(number)
        self._storage.set_trial_user_attr(trial_id, OUTCOME_ATTRIBUTE, dict(outcome))
        self._storage.set_trial_state_values(trial_id, OptunaState.WAITING)
        return self._storage.get_trial(trial_id)

    def pause(self, number: int, outcome: Mapping[str, Any]) -> FrozenTrial:
        """Pause a running trial until `resume` is called, and return it; `outcome` tells how far it was trained."""
        trial_id = self._trial_id(number)
        self._storage.set_trial_user_attr(trial_id, OUTCOME_ATTRIBUTE, dict(outcome))
        self._storage.set_trial_user_attr(trial_id, PAUSED_ATTRIBUTE, True)
        return self._storage.get_trial(trial_id)

    def resume(self, number: int) -> optuna.Trial:
        """Return a paused trial, which runs again.

        Raises:
            ValueError: if the trial is not paused.
        """
        trial_id = self._trial_id(number)
        if not is_paused(self._storage.get_trial(trial_id)):
            raise ValueError(f"trial {number} is not paused")
        self._storage.set_trial_user_attr(trial_id, PAUSED_ATTRIBUTE, None)
        return optuna.Trial(self._study, trial_id)

    def end(self, number: int, state: TrialState, value: float | None, *, is_fixed: bool) -> FrozenTrial:
        """Tell Optuna that a running trial has ended, and return it.

        `is_fixed` says that the trial has values outside the space, and so no parameters. Optuna would conclude from a
        completed trial without parameters that all trials share no parameter. With two objectives, a completed trial
        has its cost in its outcome.
        """
        has_cost = len(self._study.directions) > 1
        if state is TrialState.COMPLETED and not is_fixed:
            assert value is not None, "a completed trial has a value"
            return self._study.tell(number, [value, self._cost(number)] if has_cost else value)
        is_pruned = state in (TrialState.PRUNED, TrialState.REFUSED) and not is_fixed
        return self._study.tell(number, state=OptunaState.PRUNED if is_pruned else OptunaState.FAIL)

    def recover(self, find_outcome: FindOutcome) -> list[int]:
        """Set right the trials that a driver has left running when it died; return the numbers of those that go on.

        A trial whose training had ended is told. All others wait to go on. Nobody else may drive the study.
        """
        left = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        running = [trial for trial in left if not is_paused(trial)]
        return [trial.number for trial in running if not self._end_if_trained(trial, find_outcome)]

    def _end_if_trained(self, trial: FrozenTrial, find_outcome: FindOutcome) -> bool:
        """Return whether the training of a trial has ended, after telling Optuna so; otherwise let the trial wait."""
        attributes, reported = trial.user_attrs, sorted(trial.intermediate_values.items())
        run_key = attributes.get(RUN_KEY_ATTRIBUTE)
        outcome = attributes.get(OUTCOME_ATTRIBUTE)
        if not _is_final(outcome):
            outcome = find_outcome(run_key) if run_key else None
        untrained = (TrialState.FAILED.value, TrialState.REFUSED.value)
        if outcome and _is_final(outcome) and (reported or outcome["state"] in untrained):
            self._storage.set_trial_user_attr(trial._trial_id, OUTCOME_ATTRIBUTE, dict(outcome))
            value = reported[-1][1] if reported else None
            is_fixed = FIXED_VALUES_ATTRIBUTE in attributes
            self.end(trial.number, TrialState(outcome["state"]), value, is_fixed=is_fixed)
            return True
        interrupted = TrialResult(TrialState.INTERRUPTED, (), 0.0, reason="its search ended before it had")
        self.put_back(trial.number, {**outcome_attribute(interrupted, run_key or ""), "epochs": len(reported)})
        return False

    def _cost(self, number: int) -> float:
        outcome = self._storage.get_trial(self._trial_id(number)).user_attrs[OUTCOME_ATTRIBUTE]
        return float(outcome["cost"]["value"])

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)


def _is_final(outcome: Mapping[str, Any] | None) -> bool:
    return outcome is not None and TrialState(outcome["state"]).is_final

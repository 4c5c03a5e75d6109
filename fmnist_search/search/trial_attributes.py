"""The attributes of Optuna's trials and studies: their names, and the values of ours that are stored in them.

The names and the form of the values never change: studies of earlier versions are read and continued.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion, ConfirmedScore, SelectedRecipe
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.study import Prediction, RunningTrial, TrialRecord
from fmnist_search.results.training import Accuracy, Overhead, TrialResult, TrialState
from fmnist_search.search.damaged_values import damaged_values

RECIPE_ATTRIBUTE = "recipe"
"""The recipe of a trial, as a flat dictionary."""

OUTCOME_ATTRIBUTE = "outcome"
"""How a trial ended: `outcome_attribute` or `duplicate_outcome_attribute`."""

SEED_ATTRIBUTE = "seed"
"""The seed of a queued trial that repeats the seed of an earlier one."""

START_ATTRIBUTE = "start"
"""The source of a recipe that the study file starts with."""

REQUEST_ATTRIBUTE = "request"
"""The key of the request of another process that a trial meets."""

FIXED_VALUES_ATTRIBUTE = "given"
"""The values of a start recipe outside the space, as they were given."""

RETRY_ATTRIBUTE = "retry_of"
"""The number of the interrupted or lost trial that a trial of an earlier version repeats; now such a trial goes on."""

WORKER_LOST_ATTRIBUTE = "lost"
"""After how many epochs a trial lost its last worker; True in studies of earlier versions."""

RUN_KEY_ATTRIBUTE = "run_key"
"""The key of the run of a trial in MLflow."""

SURVIVOR_OF_ATTRIBUTE = "survivor_of"
"""The number of the candidate that a trial trains in full under the one-epoch rule."""

DUPLICATE_ATTRIBUTE = "duplicate_of"
"""The number of the earlier equal trial whose result a trial reuses."""

PAUSED_ATTRIBUTE = "paused"
"""True if a trial is paused, otherwise None or absent. A paused trial is RUNNING in Optuna, which has no such state."""

PREDICTION_ATTRIBUTE = "prediction"
"""The accuracy that was predicted for the last epoch of a trial when freeze-thaw paused it: median, low and high end.

It is empty if there was no model yet."""

REBUILT_RUNS_ATTRIBUTE = "rebuilt_runs"
"""Attribute of a study: the ids of runs that replace those that its trials name, by these."""


def outcome_attribute(result: TrialResult, run_id: str, overhead: Overhead = Overhead()) -> dict[str, Any]:  # noqa: B008
    """Return how the training of a trial ended, as the value of `OUTCOME_ATTRIBUTE`."""
    return {
        "state": result.state.value,
        "reason": result.reason,
        "epochs": len(result.epochs),
        "seconds": result.seconds,
        "parameters": result.parameters,
        "mult_adds": result.mult_adds,
        "seconds_per_epoch": result.seconds_per_epoch,
        "run_id": run_id,
        "overhead": dataclasses.asdict(overhead),
        "comes_again": result.state is TrialState.INTERRUPTED,
        **_cost_to_dict(result.cost),
    }


def trained_until(before: Mapping[str, Any] | None, result: TrialResult) -> float:
    """Return the Unix time until which a trial that ends now was trained.

    `before` is its last outcome, if it went on: a trial that was paused and ends without another epoch trained before.
    """
    if before and before["state"] == TrialState.PAUSED.value and before["epochs"] == len(result.epochs):
        return float(before.get("trained_until", time.time()))
    return time.time()


def duplicate_outcome_attribute(original: TrialRecord) -> dict[str, Any]:
    """Return how a trial ended that reuses the result of an earlier equal trial, as `OUTCOME_ATTRIBUTE`."""
    return {
        "state": original.state.value,
        "reason": f"equals trial {original.number}",
        "epochs": original.epochs,
        "seconds": 0.0,
        "parameters": original.parameters,
        "mult_adds": original.mult_adds,
        "seconds_per_epoch": original.seconds_per_epoch,
        "run_id": original.run_id,
        **_cost_to_dict(original.cost),
    }


def _cost_to_dict(cost: TrialCost | None) -> dict[str, Any]:
    """Return the entry of a cost in an outcome; none in a study with one metric."""
    return {} if cost is None else {"cost": dataclasses.asdict(cost)}


class TrialRecords:
    """The records of a study's trials, each of which is made once: a trial that has ended is the same object then."""

    def __init__(self, study: optuna.Study):
        self._study = study
        self._made: dict[int, tuple[FrozenTrial, TrialRecord]] = {}

    def all(self) -> list[TrialRecord]:
        """Return a record of each trial that has ended, by number; also of those that wait to go on or are paused.

        A trial without a recipe or an outcome is left out: its process was killed before it reported the end.
        """
        records = [self._record(trial) for trial in self._study.get_trials(deepcopy=False) if _has_record(trial)]
        rebuilt: Mapping[str, str] = self._study.user_attrs.get(REBUILT_RUNS_ATTRIBUTE, {})
        if not rebuilt:
            return records
        return [dataclasses.replace(record, run_id=_present_run_id(record.run_id, rebuilt)) for record in records]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        made = self._made.get(trial.number)
        if made is None or made[0] is not trial:
            made = self._made[trial.number] = trial, trial_record(trial)
        return made[1]


def _has_record(trial: FrozenTrial) -> bool:
    if RECIPE_ATTRIBUTE not in trial.user_attrs or OUTCOME_ATTRIBUTE not in trial.user_attrs:
        return False
    return trial.state is not OptunaState.RUNNING or is_paused(trial)


def is_paused(trial: FrozenTrial) -> bool:
    """Return whether a trial is paused."""
    return bool(trial.user_attrs.get(PAUSED_ATTRIBUTE)) and not trial.datetime_complete


def _present_run_id(run_id: str | None, rebuilt: Mapping[str, str]) -> str | None:
    """Return the id of the run that has replaced a run, perhaps several times."""
    while run_id is not None and run_id in rebuilt:
        run_id = rebuilt[run_id]
    return run_id


def running_trials(study: optuna.Study, since: float) -> list[RunningTrial]:
    """Return the trials that have begun since a Unix time and have not ended, by number.

    A trial of a process that was killed never ends; `since` leaves out those of earlier sessions.
    """
    return [
        RunningTrial(
            trial.number,
            Recipe().replace(trial.user_attrs[RECIPE_ATTRIBUTE]),
            tuple(value for _, value in sorted(trial.intermediate_values.items())),
        )
        for trial in study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        if RECIPE_ATTRIBUTE in trial.user_attrs
        and not is_paused(trial)
        and (_to_unix_seconds(trial.datetime_start) or 0.0) >= since
    ]


def trial_record(trial: FrozenTrial, recipe: Recipe | None = None) -> TrialRecord:
    """Return the record of a trial that has ended; its value is the last reported one if it was not completed.

    `recipe` is the one that is stored with the trial, if it is known already.
    """
    with damaged_values(f"trial {trial.number}"):
        outcome = trial.user_attrs[OUTCOME_ATTRIBUTE]
        is_refused = outcome["state"] == TrialState.REFUSED.value  # its values are for Optuna's sampler alone
        reported = {} if is_refused else trial.intermediate_values
        curve = tuple(float(value) for _, value in sorted(reported.items()))
        value = trial.values[0] if trial.values and not is_refused else None
        cost = outcome.get("cost")
        return TrialRecord(
            number=trial.number,
            state=TrialState(outcome["state"]),
            value=curve[-1] if value is None and curve else value and float(value),
            epochs=outcome["epochs"],
            recipe=recipe or Recipe().replace(trial.user_attrs[RECIPE_ATTRIBUTE]),
            seconds=outcome["seconds"],
            reason=outcome["reason"],
            duplicate_of=trial.user_attrs.get(DUPLICATE_ATTRIBUTE),
            run_id=outcome["run_id"],
            curve=curve,
            overhead=Overhead(**outcome.get("overhead", {})),
            will_retry=outcome.get("comes_again", outcome["state"] == TrialState.INTERRUPTED.value),
            parameters=outcome.get("parameters", 0),
            mult_adds=outcome["mult_adds"] if "mult_adds" in outcome else int(_earlier_cost(outcome, "mult_adds")),
            seconds_per_epoch=outcome.get("seconds_per_epoch", _earlier_cost(outcome, "seconds_per_epoch")),
            cost=TrialCost(cost["metric"], float(cost["value"])) if cost else None,
            prediction=_prediction(trial) if outcome["state"] == TrialState.PAUSED.value else None,
            started_at=_to_unix_seconds(trial.datetime_start),
            ended_at=_to_unix_seconds(trial.datetime_complete),
            trained_until=outcome.get("trained_until"),
        )


def _earlier_cost(outcome: Mapping[str, Any], metric: str) -> float:
    """Return a cost of a trial of an earlier version, which stored only the one that its study minimized.

    Without it, the seconds of an epoch are those of the whole training by its epochs.
    """
    stored = outcome.get("cost")
    if stored and stored["metric"] == metric:
        return float(stored["value"])
    has_seconds = metric == "seconds_per_epoch" and outcome["epochs"]
    return float(outcome["seconds"]) / outcome["epochs"] if has_seconds else 0.0


def _prediction(trial: FrozenTrial) -> Prediction | None:
    stored = trial.user_attrs.get(PREDICTION_ATTRIBUTE)
    return Prediction(*stored) if stored else None


def _to_unix_seconds(local: datetime | None) -> float | None:
    """Return Unix seconds; Optuna stores the local time of this machine without a time zone."""
    return local.timestamp() if local else None


def selected_to_dict(selected: SelectedRecipe) -> dict[str, Any]:
    """Return what a promotion has selected as values that JSON can hold."""
    return {
        "key": selected.key,
        "confirmed": _score_to_dict(selected.confirmed_score),
        "recipe": selected.recipe.to_flat_dict(),
        "members": selected.members,
    }


def selected_from_dict(stored: Mapping[str, Any]) -> SelectedRecipe:
    """Return what `selected_to_dict` stored."""
    recipe = Recipe().replace(stored["recipe"])
    return SelectedRecipe(stored["key"], _score_from_dict(stored["confirmed"]), recipe, stored["members"])


def _score_to_dict(score: ConfirmedScore) -> dict[str, Any]:
    return {"trial": score.trial, "recipe": score.recipe.to_flat_dict(), "accuracies": list(score.accuracies)}


def _score_from_dict(stored: Mapping[str, Any]) -> ConfirmedScore:
    return ConfirmedScore(stored["trial"], Recipe().replace(stored["recipe"]), tuple(stored["accuracies"]))


def champion_to_dict(champion: Champion) -> dict[str, Any]:
    """Return a champion as values that JSON can hold."""
    test = champion.test
    return {
        "confirmed": _score_to_dict(champion.confirmed_score),
        "recipe": champion.recipe.to_flat_dict(),
        "test": {
            **{"hits": test.correct, "images": test.images, "low": test.low, "high": test.high},
            **({"loss": test.loss} if test.loss is not None else {}),
        },
        "model": champion.model,
        "version": champion.version,
        "alias": champion.alias,
        "verdict": champion.verdict,
        "members": champion.members,
    }


def champion_from_dict(stored: Mapping[str, Any]) -> Champion:
    """Return the champion that `champion_to_dict` stored; earlier versions stored neither verdict nor members."""
    test = stored["test"]
    return Champion(
        confirmed_score=_score_from_dict(stored["confirmed"]),
        recipe=Recipe().replace(stored["recipe"]),
        test=Accuracy(test["hits"], test["images"], test["low"], test["high"], test.get("loss")),
        model=stored["model"],
        version=stored["version"],
        alias=stored["alias"],
        verdict=stored.get("verdict", ""),
        members=stored.get("members", 1),
    )

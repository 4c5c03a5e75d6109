"""What Optuna's attributes keep of a trial and of a champion: plain values there, ours here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion, ConfirmedScore
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Accuracy, Overhead, TrialResult, TrialState

RECIPE_ATTRIBUTE = "recipe"
OUTCOME_ATTRIBUTE = "outcome"
"""Attributes of a trial."""


def outcome_attribute(result: TrialResult, run_id: str, overhead: Overhead, *, will_retry: bool) -> dict[str, Any]:
    """How a trial ended, to be kept beside what Optuna keeps of it."""
    return {
        "state": result.state.value,
        "reason": result.reason,
        "epochs": len(result.epochs),
        "seconds": result.seconds,
        "parameters": result.parameters,
        "run_id": run_id,
        "overhead": dataclasses.asdict(overhead),
        "comes_again": will_retry,
    }


def duplicate_outcome_attribute(original: TrialRecord) -> dict[str, Any]:
    """How a trial ended that an earlier equal one has answered."""
    return {
        "state": original.state.value,
        "reason": f"equals trial {original.number}",
        "epochs": original.epochs,
        "seconds": 0.0,
        "parameters": original.parameters,
        "run_id": original.run_id,
    }


def has_ended(trial: FrozenTrial) -> bool:
    """Whether it is known what the trial trained and what came of it."""
    return RECIPE_ATTRIBUTE in trial.user_attrs and OUTCOME_ATTRIBUTE in trial.user_attrs


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """A trial that has ended, as the rest of the house knows it."""
    outcome = trial.user_attrs[OUTCOME_ATTRIBUTE]
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return TrialRecord(
        number=trial.number,
        state=TrialState(outcome["state"]),
        value=value,
        epochs=outcome["epochs"],
        recipe=Recipe().replace(trial.user_attrs[RECIPE_ATTRIBUTE]),
        seconds=outcome["seconds"],
        reason=outcome["reason"],
        duplicate_of=trial.user_attrs.get("duplicate_of"),
        run_id=outcome["run_id"],
        curve=tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)),
        overhead=Overhead(**outcome.get("overhead", {})),
        comes_again=outcome.get("comes_again", outcome["state"] == TrialState.INTERRUPTED.value),
        parameters=outcome.get("parameters", 0),
        began_at=_to_unix_seconds(trial.datetime_start),
        ended_at=_to_unix_seconds(trial.datetime_complete),
    )


def _to_unix_seconds(local: datetime | None) -> float | None:
    """Optuna keeps times of this machine's clock, without a zone."""
    return local.timestamp() if local else None


def champion_to_dict(champion: Champion) -> dict[str, Any]:
    """A champion in plain values."""
    confirmed = champion.confirmed
    return {
        "confirmed": {
            "trial": confirmed.trial,
            "recipe": confirmed.recipe.to_flat_dict(),
            "accuracies": list(confirmed.accuracies),
        },
        "recipe": champion.recipe.to_flat_dict(),
        "test": dataclasses.asdict(champion.test),
        "model": champion.model,
        "version": champion.version,
        "alias": champion.alias,
        "verdict": champion.verdict,
        "members": champion.members,
    }


def champion_from_dict(stored: Mapping[str, Any]) -> Champion:
    """The champion of such values; those of earlier versions lack some."""
    confirmed = stored["confirmed"]
    return Champion(
        confirmed=ConfirmedScore(
            confirmed["trial"], Recipe().replace(confirmed["recipe"]), tuple(confirmed["accuracies"])
        ),
        recipe=Recipe().replace(stored["recipe"]),
        test=Accuracy(**stored["test"]),
        model=stored["model"],
        version=stored["version"],
        alias=stored["alias"],
        verdict=stored.get("verdict", ""),
        members=stored.get("members", 1),
    )

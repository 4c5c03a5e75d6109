"""What Optuna's attributes keep of a trial and of a champion: plain values there, ours here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import Accuracy, Champion, Confirmed, Overhead, State, TrialResult, TrialRow

RECIPE = "recipe"
OUTCOME = "outcome"
"""Attributes of a trial."""


def outcome_of(result: TrialResult, run_id: str, overhead: Overhead, *, comes_again: bool) -> dict[str, Any]:
    """How a trial ended, to be kept beside what Optuna keeps of it."""
    return {
        "state": result.state.value,
        "reason": result.reason,
        "epochs": len(result.epochs),
        "seconds": result.seconds,
        "parameters": result.parameters,
        "run_id": run_id,
        "overhead": dataclasses.asdict(overhead),
        "comes_again": comes_again,
    }


def outcome_of_duplicate(known: TrialRow) -> dict[str, Any]:
    """How a trial ended that an earlier equal one has answered."""
    return {
        "state": known.state.value,
        "reason": f"equals trial {known.number}",
        "epochs": known.epochs,
        "seconds": 0.0,
        "parameters": known.parameters,
        "run_id": known.run_id,
    }


def has_ended(trial: FrozenTrial) -> bool:
    """Whether it is known what the trial trained and what came of it."""
    return RECIPE in trial.user_attrs and OUTCOME in trial.user_attrs


def row_of(trial: FrozenTrial) -> TrialRow:
    """A trial that has ended, as the rest of the house knows it."""
    outcome = trial.user_attrs[OUTCOME]
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return TrialRow(
        number=trial.number,
        state=State(outcome["state"]),
        value=value,
        epochs=outcome["epochs"],
        recipe=Recipe().replace(trial.user_attrs[RECIPE]),
        seconds=outcome["seconds"],
        reason=outcome["reason"],
        duplicate_of=trial.user_attrs.get("duplicate_of"),
        run_id=outcome["run_id"],
        curve=tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)),
        overhead=Overhead(**outcome.get("overhead", {})),
        comes_again=outcome.get("comes_again", outcome["state"] == State.INTERRUPTED.value),
        parameters=outcome.get("parameters", 0),
        began_at=_unix(trial.datetime_start),
        ended_at=_unix(trial.datetime_complete),
    )


def _unix(local: datetime | None) -> float | None:
    """Optuna keeps times of this machine's clock, without a zone."""
    return local.timestamp() if local else None


def champion_to(champion: Champion) -> dict[str, Any]:
    """A champion in plain values."""
    confirmed = champion.confirmed
    return {
        "confirmed": {
            "trial": confirmed.trial,
            "recipe": confirmed.recipe.flat(),
            "accuracies": list(confirmed.accuracies),
        },
        "recipe": champion.recipe.flat(),
        "test": dataclasses.asdict(champion.test),
        "model": champion.model,
        "version": champion.version,
        "alias": champion.alias,
        "verdict": champion.verdict,
        "members": champion.members,
    }


def champion_from(stored: Mapping[str, Any]) -> Champion:
    """The champion of such values; those of earlier versions lack some."""
    confirmed = stored["confirmed"]
    return Champion(
        confirmed=Confirmed(confirmed["trial"], Recipe().replace(confirmed["recipe"]), tuple(confirmed["accuracies"])),
        recipe=Recipe().replace(stored["recipe"]),
        test=Accuracy(**stored["test"]),
        model=stored["model"],
        version=stored["version"],
        alias=stored["alias"],
        verdict=stored.get("verdict", ""),
        members=stored.get("members", 1),
    )

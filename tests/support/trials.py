"""Records of trials that were never run, with values that follow from their recipes."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.study import Importances, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.suggest import base_recipe, suggest_recipe, trial_seed

DEFAULT_STATES = (
    TrialState.COMPLETED,
    TrialState.COMPLETED,
    TrialState.COMPLETED,
    TrialState.PRUNED,
    TrialState.FAILED,
    TrialState.INTERRUPTED,
)


def make_trials(
    config: StudyConfig, count: int, states: Sequence[TrialState] = DEFAULT_STATES, seed: int = 0
) -> list[TrialRecord]:
    """Return records of trials whose states take turns, each a little later than the one before."""
    noise = random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    base = base_recipe(config, "float32")
    records = []
    for number in range(count):
        recipe = suggest_recipe(study.ask(), config.space, base, trial_seed(seed, number))
        state = states[number % len(states)]
        best = 0.92 - 0.02 * abs(math.log10(recipe.optimizer.learning_rate / 4e-3)) + noise.gauss(0, 0.003)
        epochs = {TrialState.COMPLETED: base.epochs, TrialState.FAILED: 0}.get(state, 1)
        curve = tuple(best - 0.1 / epoch for epoch in range(1, epochs + 1))
        parameters = 1000 * sum(recipe.model.widths)
        seconds = 0.5 + epochs * parameters / 1e5
        began = 1.7e9 + 2.0 * number + (3600 if number > count / 2 else 0)  # the study was paused in the middle
        records.append(
            TrialRecord(
                number,
                state,
                curve[-1] if curve else None,
                epochs,
                recipe,
                seconds,
                curve=curve,
                parameters=parameters,
                mult_adds=10 * parameters,
                seconds_per_epoch=parameters / 1e5 if epochs else 0.0,
                started_at=began,
                ended_at=began + seconds,
            )
        )
    return records


def with_costs(trials: Sequence[TrialRecord], metric: str = "mult_adds") -> list[TrialRecord]:
    """Return the trials as those of a study that minimizes a cost, which completed trials have."""
    return [
        dataclasses.replace(trial, cost=TrialCost(metric, 7.5 * trial.parameters))
        if trial.state is TrialState.COMPLETED
        else trial
        for trial in trials
    ]


def make_importances(names: Sequence[str], trials: int) -> Importances:
    """Return importances that halve from name to name."""
    weights = [2.0**-place for place in range(1, len(names) + 1)]
    return Importances({name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}, trials)

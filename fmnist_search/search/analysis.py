"""What a search found out besides its best trial: which hyperparameters matter, and which stand at an edge."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import cast

import optuna
from optuna.trial import TrialState

from fmnist_search.config.space import Choice, Domain, Range, Space
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Hyperparameter, Value
from fmnist_search.recipe.recipe import is_active, recipe_hyperparameters
from fmnist_search.results.study import Importances, TrialRecord

BEST_TRIALS = 5
"""So many of the best trials must agree before an edge is worth a word."""
BOUNDARY_FRACTION = 0.05
"""Share of a range that counts as its edge."""
MIN_ORDERED_CHOICES = 3
"""Of fewer values, five trials take the same end too often by chance."""

MIN_TRIALS = 8
"""Completed trials without which importances are mere luck."""
TOP_QUANTILE, MIN_TOP_TRIALS = 0.1, 4
"""PED-ANOVA compares the best tenth with all; of small studies more, or there were too few to compare."""


def load_ped_anova() -> None:
    """Import PED-ANOVA without scikit-learn, which Optuna would load for other evaluators and which takes a second.

    Those evaluators cannot be used afterwards, so that only a process that needs nothing else may call this.
    """
    if "sklearn" not in sys.modules:
        sys.modules["sklearn"] = cast(ModuleType, None)  # makes its import fail
        try:
            importlib.import_module("optuna.importance")
        finally:
            del sys.modules["sklearn"]


def importances(study: optuna.Study) -> Importances:
    """Which hyperparameters decide whether a completed trial is among the best: PED-ANOVA (arXiv 2304.10255).

    Raises:
        UserError: too few trials have completed.
    """
    completed = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if completed < MIN_TRIALS:
        raise UserError(
            f"study {study.study_name!r}: {completed} completed trials are too few to tell importances, which need "
            f"{MIN_TRIALS}; search on with more trials, or with the pruner 'none'",
            exit_code=3,
        )
    top = max(TOP_QUANTILE, MIN_TOP_TRIALS / completed)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importances(dict(shares), completed)


def boundary_warnings(rows: Sequence[TrialRecord], space: Space) -> tuple[str, ...]:
    """One line for each domain at whose end the best trials lie; `rows` are completed trials, the best first.

    An end that no study file could move (no dropout, a fifth block) is none.
    """
    best = rows[:BEST_TRIALS]
    if len(best) < BEST_TRIALS:
        return ()
    lines = []
    family = best[0].recipe.model.family
    flats = [row.recipe.to_flat_dict() for row in best]
    alike = all(row.recipe.model.family == family for row in best)  # families share names, but no domains
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        domain = space.domains(family).get(name) if alike or not name.startswith("model.") else None
        if domain and all(is_active(name, FAMILIES[family], flat) for flat in flats):
            lines += _boundary_warning(name, spec, domain, [flat[name] for flat in flats])
    return tuple(lines)


def _boundary_warning(name: str, spec: Hyperparameter, domain: Domain, values: Sequence[Value]) -> list[str]:
    numbers = [value for value in values if isinstance(value, int | float)]
    match domain:
        case Range(low, high) if len(numbers) == len(values):
            places = [domain.relative_position(number) for number in numbers]
            if max(places) <= BOUNDARY_FRACTION and low != spec.low:
                return [
                    f"{name}: the best {BEST_TRIALS} lie within {BOUNDARY_FRACTION:.0%} of its lower bound, {low}; "
                    f"widen it"
                ]
            if min(places) >= 1 - BOUNDARY_FRACTION and high != spec.high:
                return [
                    f"{name}: the best {BEST_TRIALS} lie within {BOUNDARY_FRACTION:.0%} of its upper bound, {high}; "
                    f"widen it"
                ]
        case Choice(choices) if spec.choices is None and len(choices) >= MIN_ORDERED_CHOICES and len(set(numbers)) == 1:
            ordered = [choice for choice in choices if isinstance(choice, int | float)]
            if numbers[0] == min(ordered) != spec.low:
                return [f"{name}: the best {BEST_TRIALS} all take its smallest value, {numbers[0]}; offer smaller ones"]
            if numbers[0] == max(ordered) != spec.high:
                return [f"{name}: the best {BEST_TRIALS} all take its largest value, {numbers[0]}; offer larger ones"]
    return []

"""What a search shows besides its best trial: importances, and best trials at the boundaries of the space."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import cast

import optuna
from optuna.trial import TrialState

from fmnist_search.config.domain import BOUNDARY_FRACTION, Boundary, Choice, Domain, Range, boundary_of
from fmnist_search.config.space import Space
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Hyperparameter, Value
from fmnist_search.recipe.recipe import is_active, recipe_hyperparameters
from fmnist_search.results.study import Importances, TrialRecord

BEST_TRIALS = 5
"""The number of best trials that must all lie at a boundary for a warning."""

MIN_TRIALS = 4
"""PED-ANOVA compares some of the trials with all: two with four, at the least."""

TOP_QUANTILE, MIN_TOP_TRIALS = 0.1, 4
"""PED-ANOVA compares the best tenth of the trials with all, but four of them if half of the trials are so many."""


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
    """Return how much each hyperparameter decides whether a completed trial is among the best.

    By PED-ANOVA (arXiv 2304.10255). The best are those of the highest accuracy, also if the study has two objectives.

    Raises:
        UserError: if too few trials have completed.
    """
    completed = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if completed < MIN_TRIALS:
        raise UserError(
            f"study {study.study_name!r}: {completed} completed trials in its space are too few for importances, which "
            f"need {MIN_TRIALS}; search on with more trials, or with the pruner 'none'",
            exit_code=3,
        )
    top = max(TOP_QUANTILE, min(MIN_TOP_TRIALS / completed, 0.5))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top)
    if len(study.directions) == 1:
        return Importances(dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), completed)
    with warnings.catch_warnings():
        # It minimizes a target, and says so each time.
        warnings.filterwarnings("ignore", message=".*computes the importances of params to achieve low")
        shares = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -trial.values[0]
        )
    return Importances(dict(shares), completed)


def boundary_warnings(trials: Sequence[TrialRecord], space: Space) -> tuple[str, ...]:
    """Return a line for each domain at whose boundary all the best trials lie.

    `trials` are completed trials, the best first. A boundary that no study file could move (no dropout, a fifth block)
    gives no line.
    """
    best = trials[:BEST_TRIALS]
    if len(best) < BEST_TRIALS:
        return ()
    family = best[0].recipe.model.family
    values = [trial.recipe.to_flat_dict() for trial in best]
    same_family = all(trial.recipe.model.family == family for trial in best)
    domains = space.domains(family)
    lines = []
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        # Families share names of their own hyperparameters, but not the domains.
        if name not in domains or (name.startswith("model.") and not same_family):
            continue
        if all(is_active(name, FAMILIES[family], flat) for flat in values):
            lines.append(_boundary_warning(spec, domains[name], [flat[name] for flat in values]))
    return tuple(filter(None, lines))


def _boundary_warning(spec: Hyperparameter, domain: Domain, values: Sequence[Value]) -> str:
    """Return a line if all values lie at one boundary of a domain that could be moved, and "" otherwise."""
    boundaries = {boundary_of(domain, value) for value in values}
    boundary = boundaries.pop()
    if boundaries or boundary is None:
        return ""
    match domain:
        case Range(low, high):
            end: Value
            end, limit = (low, spec.low) if boundary is Boundary.LOWER else (high, spec.high)
            line = f"lie within {BOUNDARY_FRACTION:.0%} of its {boundary.value} bound, {end}; widen it"
        case Choice() if spec.choices is None and len(set(values)) == 1 and domain.contains(values[0]):
            end, limit = values[0], spec.low if boundary is Boundary.LOWER else spec.high
            which, other = ("smallest", "smaller") if boundary is Boundary.LOWER else ("largest", "larger")
            line = f"all take its {which} value, {end}; offer {other} ones"
        case _:
            return ""
    return f"{spec.name}: the best {BEST_TRIALS} {line}" if end != limit else ""

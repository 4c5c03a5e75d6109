"""Which sampler and which pruner a study can have."""

from __future__ import annotations

from fmnist_search.config.conditional_space import hyperparameter_groups, space_size, unconditional_ranges
from fmnist_search.config.domain import domain_values, is_ordered
from fmnist_search.config.pruners import Extrapolation, NoPruner, OneEpoch, Pruner
from fmnist_search.config.samplers import Cmaes, FreezeThaw, Grid, Sampler
from fmnist_search.config.sections import Budget, Objective
from fmnist_search.config.space import Space
from fmnist_search.errors import UserError

MAX_GRID_SIZE = 10_000
"""The largest number of recipes of a grid."""


def can_have_freeze_thaw(budget: Budget, objective: Objective, space: Space) -> bool:
    """Return whether freeze-thaw can be used in a study."""
    return budget.epochs > 1 and not objective.cost and _has_ordered(space)


def check_pruner(pruner: Pruner, budget: Budget, objective: Objective) -> None:
    """Check that a study can have a pruner.

    Raises:
        UserError: if the study has two metrics, or if the pruner would never prune or leaves nothing to choose from.
    """
    rung = pruner.first_rung(budget.epochs)
    if objective.cost and not isinstance(pruner, NoPruner):
        raise UserError(
            f"pruner: {pruner.name!r} compares trials by one value, and objective.metrics names two; leave out the "
            "pruner, or take 'none'"
        )
    if rung >= budget.epochs and (budget.epochs > 1 or isinstance(pruner, OneEpoch)):
        raise UserError(
            f"pruner: {pruner.name!r} can prune a trial after epoch {rung} at the earliest, and budget.epochs = "
            f"{budget.epochs} is the last; prune earlier, train longer, or take the pruner 'none'"
        )
    if isinstance(pruner, OneEpoch):
        trials, survivors = budget.trials, pruner.survivors
        if trials is None:
            raise UserError("pruner: 'one-epoch' needs the number of trials; give budget.trials")
        if trials <= survivors:
            raise UserError(
                f"pruner.survivors: {survivors} of budget.trials = {trials} leave no candidates to choose from; give "
                "more trials or fewer survivors"
            )


def check_sampler(sampler: Sampler, pruner: Pruner, budget: Budget, objective: Objective, space: Space) -> None:
    """Check that a study can have a sampler, and that the pruner can be used with it.

    Raises:
        UserError: if it cannot sample the space, has nothing to optimize, or has a pruner that it cannot have.
    """
    if isinstance(sampler, Grid):
        _check_grid(space)
    if isinstance(sampler, Cmaes) and objective.cost:
        raise UserError(
            "sampler: 'cmaes' optimizes one value, and objective.metrics names two; take 'tpe', 'gp', 'random', 'qmc' "
            "or 'grid'"
        )
    if isinstance(sampler, Cmaes) and not unconditional_ranges(space):
        raise UserError(
            "sampler: 'cmaes' needs a range that every recipe has, and this space has none; give one as "
            "{ low = .., high = .. }, or take 'tpe'"
        )
    if isinstance(sampler, FreezeThaw):
        _check_freeze_thaw(pruner, budget, objective)
        _check_ordered(space, "sampler", sampler.name, "tpe")
    if isinstance(pruner, Extrapolation):
        _check_ordered(space, "pruner", pruner.name, "halving")


def _check_grid(space: Space) -> None:
    if infinite := [name for name, domain in space.by_key() if domain_values(domain) is None]:
        raise UserError(*(f"{name}: is infinite, which a grid cannot be; give a list or a step" for name in infinite))
    if (count := space_size(space).recipe_count) > MAX_GRID_SIZE:
        raise UserError(
            f"sampler: a grid of {count:,} recipes; reduce the space to at most {MAX_GRID_SIZE:,}, or take another "
            "sampler"
        )


def _check_freeze_thaw(pruner: Pruner, budget: Budget, objective: Objective) -> None:
    if objective.cost:
        raise UserError(
            "sampler: 'freeze-thaw' compares trials by one value, and objective.metrics names two; take 'tpe', 'gp', "
            "'random', 'qmc' or 'grid'"
        )
    if not isinstance(pruner, NoPruner):
        raise UserError(
            f"pruner: {pruner.name!r} cannot be used with the sampler 'freeze-thaw', which pauses trials itself; leave "
            "it out, or take 'none'"
        )
    if budget.epochs < 2:
        raise UserError(
            f"budget.epochs: {budget.epochs} leaves the sampler 'freeze-thaw' nothing to pause; train at least 2 "
            "epochs, or take 'tpe'"
        )


def _check_ordered(space: Space, key: str, name: str, remedy: str) -> None:
    if not _has_ordered(space):
        raise UserError(
            f"{key}: {name!r} needs a hyperparameter whose values are numbers, by which recipes can be compared, and "
            f"this space has none; give a range or a list of numbers, or take {remedy!r}"
        )


def _has_ordered(space: Space) -> bool:
    """Return whether a hyperparameter varies whose values are numbers."""
    return any(is_ordered(domain) for group in hyperparameter_groups(space) for domain in group.values())

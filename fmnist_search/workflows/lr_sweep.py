"""A sweep: the same networks trained at several learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import check_size
from fmnist_search.recipe.execution import ExecutionSettings
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.groups import Optimizer
from fmnist_search.recipe.hyperparameters import hyperparameters
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.style import figure_to_png
from fmnist_search.reporting.training_plots import sweep_figure
from fmnist_search.results.champion import LearningRateResult
from fmnist_search.results.statistics import format_mean_std
from fmnist_search.tracking import tag_names
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.training_session import open_training_session, resolve_settings
from fmnist_search.workspace import Workspace

if TYPE_CHECKING:
    from fmnist_search.reporting.style import Figure

LEARNING_RATE = "optimizer.learning_rate"
PLOT_FILE = "sweep.png"


@dataclass(frozen=True)
class LearningRateSweep:
    """The results in the order of networks and rates, and the figure, which is also an artifact of the run."""

    rates: tuple[LearningRateResult, ...]
    figure: Figure
    run_id: str


def sweep_learning_rate(
    recipes: Mapping[str, Recipe],
    factors: Sequence[float],
    seeds: int,
    *,
    workspace: Workspace | None = None,
    execution: ExecutionSettings = ExecutionSettings(),
    experiment: str = "fmnist-search",
    plots: bool = True,
    callback: StudyCallback | None = None,
) -> LearningRateSweep:
    """Train recipes, given by name, at their learning rates times each factor, from `seeds` seeds each.

    Several train at a time, each in a run below a common one, which holds a table and a figure. With `plots` false, no
    other figures are rendered.

    Raises:
        UserError: if a rate is out of bounds, a recipe has no validation images, a network cannot be built, images or
            device are missing, or the store is unreachable.
    """
    for name, recipe in recipes.items():
        check_size(recipe.model, recipe.data.num_classes)
        if not recipe.data.validation:
            raise UserError(
                f"data.validation: {name} holds no images back, but a sweep compares validation accuracies; set it"
            )
    scaled = [
        (name, factor, recipe.replace({LEARNING_RATE: _scaled_learning_rate(recipe, factor)}))
        for name, recipe in recipes.items()
        for factor in factors
    ]
    named_recipes = [
        (f"{name} {factor:g}x seed {seed}", recipe.replace({"seed": seed}))
        for name, factor, recipe in scaled
        for seed in range(recipe.seed, recipe.seed + seeds)
    ]
    title = f"sweep-lr {', '.join(recipes)}"
    resolved = resolve_settings(execution, threads=1)
    with (
        open_training_session(workspace, resolved, callback, experiment=experiment, plots=plots) as session,
        session.open_group_run(title, {tag_names.SWEEP: LEARNING_RATE}) as parent,
    ):
        results = [result for result, _ in session.run_several(named_recipes, parent, execution.workers)]
        rates = tuple(
            LearningRateResult(
                name, factor, recipe.optimizer.learning_rate, tuple(results[position * seeds : (position + 1) * seeds])
            )
            for position, (name, factor, recipe) in enumerate(scaled)
        )
        figure = sweep_figure(rates, title)
        parent.log_artifact(PLOT_FILE, figure_to_png(figure))
        parent.log_table("sweep.json", _columns(rates))
    return LearningRateSweep(rates, figure, parent.run_key)


def _scaled_learning_rate(recipe: Recipe, factor: float) -> float:
    limit = hyperparameters(Optimizer, Optimizer.prefix)[LEARNING_RATE]
    rate = recipe.optimizer.learning_rate * factor
    try:
        limit.parse(rate)
    except UserError:
        raise UserError(
            f"--factors {factor:g}: makes {LEARNING_RATE} {format_value_short(rate)}; {limit.expected()}"
        ) from None
    return rate


def _columns(rates: Sequence[LearningRateResult]) -> dict[str, list[object]]:
    return {
        "network": [rate.network for rate in rates],
        "factor": [rate.factor for rate in rates],
        "learning_rate": [rate.learning_rate for rate in rates],
        "val_accuracy": [format_mean_std(rate.accuracies) if rate.accuracies else "-" for rate in rates],
        "ended": [", ".join(sorted({result.state.value for result in rate.results})) for rate in rates],
    }

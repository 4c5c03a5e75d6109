"""The note of a training's MLflow run, in Markdown. Imports neither torch nor MLflow nor Optuna."""

from __future__ import annotations

from fmnist_search.recipe.datasets import get_dataset
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import TrialResult, TrialState
from fmnist_search.text import escape_markdown


def training_note(subject: str, recipe: Recipe, result: TrialResult | None = None) -> str:
    """Return what was trained and what came out: a pruned training says why, a completed one how accurate it is.

    `subject` is what the training is, such as "Trial 7 of the study 'quick'". Without a result it is under way.
    """
    parts = [f"{escape_markdown(subject)}: {escape_markdown(recipe.label)}, {_images(recipe)}."]
    if result:
        parts.insert(0, _outcome(recipe, result))
        if len(result.epochs) > 1:
            parts.append("The curves are in the tab *Model metrics*, under *train* and *val*.")
    return "\n\n".join(parts) + "\n"


def _outcome(recipe: Recipe, result: TrialResult) -> str:
    epochs = f"{len(result.epochs)} of {recipe.epochs} epochs"
    if result.state is not TrialState.COMPLETED:
        reason = f": {escape_markdown(result.reason)}" if result.reason else ""
        return f"**{result.state.value.capitalize()}** after {epochs}{reason}."
    if result.value is None:
        return f"**Completed**, {epochs}; it held back no validation images."
    best = result.best_val_accuracy
    higher = f"; the highest of any epoch was {best:.2%}" if best is not None and best > result.value else ""
    size = f", {result.parameters:,} parameters" if result.parameters else ""
    return f"**Validation accuracy {result.value:.2%}** after {epochs}{higher}{size}."


def _images(recipe: Recipe) -> str:
    return f"trained on {recipe.data.training_count:,} images of {get_dataset(recipe.data.dataset).title}"

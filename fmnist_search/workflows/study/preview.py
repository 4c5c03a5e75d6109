"""The preview of a study: its first recipes, and the time that it would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.config.sections import Budget
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.capacity import worker_count
from fmnist_search.search.preview import RecipePreview, preview_recipes
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.autotune import measure_throughput
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.network_budget import check_space
from fmnist_search.workflows.study.warm_start import WarmStart, load_warm_starts, no_champion
from fmnist_search.workflows.study.workers import execution_request
from fmnist_search.workflows.tuning import tuned
from fmnist_search.workspace import Workspace, sqlite_path

FORWARD_PASSES_PER_STEP = 3
"""A training step costs about as much as three forward passes."""


@dataclass(frozen=True)
class Preview:
    """The first recipes of a study with their networks, and the longest time in seconds that its trials can take."""

    recipes: tuple[RecipePreview, ...]
    seconds: float | None


def preview(
    config: StudyConfig,
    count: int = 5,
    *,
    workspace: Workspace | None = None,
    fresh: bool = False,
    tracking: TrackingOptions = TrackingOptions(),
) -> Preview:
    """Return the first `count` recipes of a study without starting it, and the time if no trial were pruned.

    The recipes of `[start]` come first, more than `count` if there are more.

    The estimate multiplies the multiply-adds of these networks with a throughput that is measured on this machine.
    A study that runs on a cluster has none.

    Raises:
        UserError: if a network cannot be built, the device is missing, the budget refuses all networks, or a search
            would refuse a start or the stored study.
    """
    workspace = workspace or Workspace.resolve()
    config.check_names()
    check_space(config)
    starts = [(start.source, start.values) for start in _load_starts(config, workspace, tracking)]
    StudyStore.find(workspace.storage_url, config, fresh=fresh)  # refuses what differs
    limit = config.budget.minutes * 60 if config.budget.minutes else None
    if config.execution.backend == "ray":
        chosen = config.execution.precision
        previews = list(preview_recipes(config, "float32" if chosen == "auto" else chosen, count, starts))
        return Preview(tuple(previews), limit)
    execution, precision = tuned(execution_request(config)(), config.execution.precision)
    previews = list(preview_recipes(config, precision, count, starts))
    recipes = tuple(previews)
    epochs = _most_epochs(config.budget)
    if epochs is None:
        return Preview(recipes, limit)
    step_bytes = [preview.step_bytes for preview in previews]
    workers, _ = worker_count(config.execution.workers, execution, step_bytes)
    most = config.budget.max_mult_adds or math.inf
    sizes = [preview.summary.mult_adds for preview in previews]
    mult_adds = statistics.fmean([size for size in sizes if size <= most] or [min(*sizes, most)])
    passes = FORWARD_PASSES_PER_STEP * config.data.training_count + config.data.validation
    seconds = epochs * passes * mult_adds / measure_throughput(execution, precision) / workers
    return Preview(recipes, min(seconds, limit or seconds))


def _most_epochs(budget: Budget) -> int | None:
    """Return how many epochs a budget allows; None without a limit of trials or epochs."""
    limits = (budget.total_epochs, budget.trials and budget.trials * budget.epochs)
    return min((limit for limit in limits if limit is not None), default=None)


def _load_starts(config: StudyConfig, workspace: Workspace, tracking: TrackingOptions) -> Sequence[WarmStart]:
    """Return the recipes of `[start]`. A store that does not exist, and so has no champion, is not created."""
    if not config.start.recipes:
        return ()
    store = None
    if "champion" in config.start.recipes and tracking.enabled:
        database = sqlite_path(workspace.tracking_uri)
        if database and not database.exists():
            raise no_champion(config.finalists.model_name)
        store = MlflowStore(workspace.tracking_uri, config.experiment)
    return load_warm_starts(workspace, config, store)

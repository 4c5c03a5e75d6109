"""A training as the worker pool sees it."""

from __future__ import annotations

from typing import Protocol

from fmnist_search.data.images import Images
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult


class Job(Protocol):
    """One training, as the study sees it."""

    recipe: Recipe
    images: Images
    worker: int
    """The number of the worker that runs it."""

    def on_epoch(self, report: EpochReport) -> Decision:
        """Take in an epoch, and say whether the training goes on."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result; `seconds` passed since its worker became free for it."""

    def on_worker_lost(self, reason: str) -> None:
        """The worker has died over it."""

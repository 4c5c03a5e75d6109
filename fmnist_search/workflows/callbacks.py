"""What a study or a training reports while it runs. This module needs neither torch nor MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport


class StudyCallback:
    """Base class of callbacks of a study or a training. Each method does nothing; override those that you need."""

    def on_message(self, text: str) -> None:
        """Called with a message for the user, one line."""

    def on_study_start(self, trials: Sequence[TrialRecord], seconds: float) -> None:
        """Called when a study starts, or continues after these trials and so many seconds of searching."""

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """Called when a trial or a finalist starts to train; others may train at the same time."""

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """Called after each epoch of the training of that name."""

    def on_training_end(self, name: str) -> None:
        """Called when the training of that name has ended, completed or not."""

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Called when a trial of the search has ended."""

"""The trainings of the finalists of a study: each goes on where it was interrupted or killed, in its run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.data.images import Images
from fmnist_search.execution.job import LossCause
from fmnist_search.files import atomic_write, content_digest, make_private_folder
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking.training_artifacts import log_training_plots
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.jobs import JobContext, Requeue, RetryingJob

FOLDER = "finalists"
"""The folder below that of the checkpoints of the trials."""
RUN_SUFFIX = ".run.json"


class FinalistFiles:
    """The checkpoints of finalists and the keys of their runs, kept until the champion of the study is registered.

    A completed training has a checkpoint of its last epoch, which gives its result without training. A training is
    known by the number that `number` makes of its name and its recipe.
    """

    def __init__(self, checkpoints_folder: Path):
        self._folder = checkpoints_folder / FOLDER
        self._checkpoints = TrialCheckpoints(self._folder)

    @staticmethod
    def number(name: str, recipe: Recipe) -> int:
        """Return the number under which the files of a training are stored."""
        return int(content_digest(f"{name}\n{recipe_to_toml(recipe)}".encode())[:8], 16)

    def run_key(self, number: int) -> str | None:
        """Return the key of the run of a training; None if it has not begun."""
        try:
            return str(json.loads(self._run_path(number).read_text())["run_key"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save_run_key(self, number: int, run_key: str) -> None:
        """Store the key of the run of a training, before the run is created."""
        make_private_folder(self._folder)
        with atomic_write(self._run_path(number)) as file:
            file.write(json.dumps({"run_key": run_key}).encode())

    def save_checkpoint(self, number: int, content: bytes, on_problem: Callable[[str], None]) -> None:
        """Write a checkpoint of a training; if that fails, `on_problem` gets one line."""
        self._checkpoints.save_if_possible(number, content, on_problem)

    def load_checkpoint(
        self, number: int, recipe: Recipe, execution: Execution, images: Images, on_problem: Callable[[str], None]
    ) -> Mapping[str, Any] | None:
        """Return the state that a training goes on from; None if it has to start again, which `on_problem` reports."""
        return self._checkpoints.load(number, recipe, execution, images, on_problem)

    def remove(self, number: int) -> None:
        """Forget a training."""
        self._run_path(number).unlink(missing_ok=True)
        self._checkpoints.remove(number)

    def run_keys(self) -> list[str]:
        """Return the keys of all runs."""
        numbers = (int(path.name.removesuffix(RUN_SUFFIX)) for path in self._folder.glob(f"*{RUN_SUFFIX}"))
        return [key for number in numbers if (key := self.run_key(number))]

    def clear(self) -> None:
        """Forget all trainings."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the trials have checkpoints
            self._folder.parent.rmdir()

    def _run_path(self, number: int) -> Path:
        return self._folder / f"{number:03d}{RUN_SUFFIX}"


class FinalistJob(RetryingJob):
    """The training of a finalist, with checkpoints. Its run holds plots of the training.

    If `is_recorded`, the training has completed before and its run has everything; only its result is needed.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRunLogger,
        context: JobContext,
        requeue: Requeue,
        files: FinalistFiles,
    ):
        super().__init__(name, recipe, images, run, context, requeue)
        self.is_recorded = False
        self._files = files
        self._number = files.number(name, recipe)

    def resume(self, checkpoint: Mapping[str, Any], *, is_recorded: bool) -> None:
        """Let the training go on from a checkpoint."""
        self.checkpoint, self.is_recorded = checkpoint, is_recorded
        if not is_recorded:
            self.replay_epochs([EpochReport(**report) for report in checkpoint["epochs"]])

    def decide(self, report: EpochReport) -> Decision:
        """Return PAUSE after the last epoch: it ends nothing then, but the worker sends a checkpoint of it."""
        return Decision.PAUSE if report.epoch == self.recipe.epochs else super().decide(report)

    def on_checkpoint(self, content: bytes) -> None:
        """Write the checkpoint; if that fails, the training goes on without."""
        self._files.save_checkpoint(self._number, content, self._context.callback.on_message)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result, and render the plots when the sender is idle."""
        super().on_result(result, seconds)
        if result.state is TrialState.COMPLETED and self._context.plots:
            weights = result.last_weights or {}
            log = partial(log_training_plots, self.run, self.name, self.recipe, result.epochs, weights, self.images)
            self._context.sender.run_when_idle(log)

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Queue the training again, which goes on in its run; the second time, it has failed."""
        if not self._requeue(cause):
            self.close(self.partial_result(TrialState.FAILED, reason))
            self._context.callback.on_message(f"{self.name}: {reason}")
            return
        self.suspend(self.partial_result(TrialState.INTERRUPTED, reason))
        self._context.callback.on_message(f"{self.name}: {reason}; it goes on from its last checkpoint")

    def close(
        self,
        result: TrialResult,
        overhead: Overhead = Overhead(),  # noqa: B008
        outcome: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the result and end the run, unless both was done before. One that failed is forgotten."""
        if self.is_recorded:
            self.result = result
            self._context.callback.on_training_end(self.name)
        elif not result.state.is_final:
            self.suspend(result)
        else:
            super().close(result, overhead, outcome or {"state": result.state.value})
            if result.state is not TrialState.COMPLETED:
                self._files.remove(self._number)

"""The eager training loop: each step is launched from Python."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fmnist_search.training.loop import PROGRESS_INTERVAL_SECONDS, Progress, ProgressCallback
from fmnist_search.training.state import TrainingState


class EagerLoop:
    """A `TrainingLoop` that launches each step from Python and can report progress within an epoch."""

    def __init__(
        self,
        training: TrainingState,
        progress_callback: ProgressCallback | None = None,
        progress_interval: float = PROGRESS_INTERVAL_SECONDS,
    ):
        self._training = training
        self._progress_callback = progress_callback
        self._progress_interval = progress_interval
        self._last_progress_at = 0.0

    def run(self, order: Tensor, first_step: int) -> None:
        """Train once on each training image, in this order (N,) int64; `first_step` counts the steps before."""
        training, done = self._training, 0
        for step, indices in enumerate(torch.split(order, training.batch_sizes), start=first_step):
            training.backward(indices)
            for group in training.optimizer.param_groups:
                group["lr"] = training.learning_rates[step]
            training.optimizer.step()
            training.averaged.update()
            done += len(indices)
            if self._progress_callback and time.perf_counter() - self._last_progress_at > self._progress_interval:
                loss, hits = training.epoch_totals.tolist()
                self._progress_callback(Progress(training.epochs_done + 1, done / len(order), loss / done, hits / done))
                self._last_progress_at = time.perf_counter()

    def close(self) -> None:
        """Do nothing: the loop holds nothing of its own."""

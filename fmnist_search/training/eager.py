"""The plain PyTorch loop, one step at a time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fmnist_search.training.loop import PROGRESS_INTERVAL_SECONDS, Progress, ProgressCallback
from fmnist_search.training.state import TrainingState


class EagerLoop:
    """Step after step, each launched from Python."""

    def __init__(self, training: TrainingState, on_progress: ProgressCallback | None = None):
        self._training = training
        self._on_progress = on_progress
        self._last_progress_at = 0.0

    def run(self, order: Tensor, first_step: int) -> None:
        """One pass over the training images in this order; `first_step` counts the steps before it."""
        training, done = self._training, 0
        for step, chosen in enumerate(torch.split(order, training.batch_sizes), start=first_step):
            training.backward(chosen)
            for group in training.optimizer.param_groups:
                group["lr"] = training.learning_rates[step]
            training.optimizer.step()
            training.averaged.update()
            done += len(chosen)
            if self._on_progress and time.perf_counter() - self._last_progress_at > PROGRESS_INTERVAL_SECONDS:
                loss, hits = training.epoch_totals.tolist()
                self._on_progress(Progress(training.epochs_done + 1, done / len(order), loss / done, hits / done))
                self._last_progress_at = time.perf_counter()

    def close(self) -> None:
        """Nothing is held."""

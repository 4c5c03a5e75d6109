"""The training engine: a plain PyTorch loop with everything resident on the device.

Nothing inside an epoch waits for the device: losses and hits add up there and are read once, at its end. What a step
does stands here, once; `graphs.py` captures the same steps in a CUDA graph.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from typing import Any

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport, SetupInfo
from fmnist_search.training.cuda_graph import CaptureError, CudaGraphLoop
from fmnist_search.training.eager import EagerLoop
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.loop import EpochResult, ProgressCallback, TrainingLoop
from fmnist_search.training.state import TrainingState

log = logging.getLogger(__name__)


def fit(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    *,
    resume_from: Mapping[str, Any] | None = None,
    on_progress: ProgressCallback | None = None,
) -> Generator[EpochResult]:
    """Train a fresh network and yield after each epoch; whoever iterates decides whether it goes on.

    The same recipe, images, execution and library versions give the same numbers, bit for bit. So does a training that
    goes on from the `state_dict` of an epoch, given as `resume_from`. `on_progress` is called by the plain loop alone.

    Raises:
        UserError: the network is too large.
        torch.OutOfMemoryError: it does not fit on the device.
    """
    training, loop, preparation = _prepare_training(recipe, images, execution, resume_from, on_progress)
    try:
        for epoch in range(training.epochs_done + 1, recipe.epochs + 1):
            started = time.perf_counter()
            loss, accuracy = training.train_epoch(epoch, loop)
            classifier = training.averaged.model
            evaluation = evaluate(classifier, images.validation, recipe.precision) if len(images.validation) else None
            report = EpochReport(
                epoch=epoch,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=evaluation.loss if evaluation else None,
                val_accuracy=evaluation.accuracy if evaluation else None,
                learning_rate=training.learning_rates[epoch * len(training.batch_sizes) - 1],
                seconds=time.perf_counter() - started,
            )
            yield EpochResult(report, evaluation, classifier, preparation, training.state_dict)
    finally:
        loop.close()


def _prepare_training(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    resume_from: Mapping[str, Any] | None,
    on_progress: ProgressCallback | None,
) -> tuple[TrainingState, TrainingLoop, SetupInfo]:
    """A training before its next step; what cannot be captured takes the plain loop, and says why."""
    started = time.perf_counter()
    training = TrainingState(recipe, images, execution, resume_from)
    built = time.perf_counter()
    if execution.engine == "plain":
        return training, EagerLoop(training, on_progress), SetupInfo(build_seconds=built - started)
    try:
        loop = CudaGraphLoop(training)
    except CaptureError as error:
        log.warning("%s: runs without a graph: %s", recipe.label, error)
        training = TrainingState(recipe, images, execution, resume_from)
        return training, EagerLoop(training, on_progress), SetupInfo(build_seconds=time.perf_counter() - started)
    return training, loop, SetupInfo(built - started, time.perf_counter() - built, engine="graph")

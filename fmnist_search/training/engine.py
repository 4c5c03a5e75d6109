"""The training engine: a PyTorch loop whose images, weights and counters all stay on the device.

Nothing inside an epoch waits for the device: losses and hits are summed there and read once, at the end of the epoch.
`state` defines what one step does; `eager` launches the steps one by one, `cuda_graph` captures and replays them.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport, SetupInfo
from fmnist_search.training.cuda_graph import CaptureError, CudaGraphLoop
from fmnist_search.training.eager import EagerLoop
from fmnist_search.training.evaluation import Evaluation, evaluate
from fmnist_search.training.loop import PROGRESS_INTERVAL_SECONDS, EpochResult, ProgressCallback, TrainingLoop
from fmnist_search.training.state import TrainingState

log = logging.getLogger(__name__)


def fit(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    *,
    resume_from: Mapping[str, Any] | None = None,
    progress_callback: ProgressCallback | None = None,
    progress_interval: float = PROGRESS_INTERVAL_SECONDS,
) -> Generator[EpochResult]:
    """Train a new network and yield after each epoch; close the generator to stop earlier.

    The same recipe, images, execution and library versions give the same results, bit for bit, and so does a training
    that is resumed. Call it inside `runtime.torch_settings(execution)`.

    Args:
        recipe: What to train.
        images: Training and validation images, on `execution.device`.
        execution: How to run the steps.
        resume_from: The `state_dict()` of an `EpochResult` of this recipe; training continues after that epoch.
        progress_callback: Receives the progress within an epoch; the eager loop alone calls it.
        progress_interval: Least seconds between two calls of `progress_callback`, each of which waits for the device.

    Yields:
        Each new epoch with the averaged weights, which stay valid until the next epoch starts.

    Raises:
        UserError: if the network is too large.
        torch.OutOfMemoryError: if the training does not fit on the device.
    """
    make_eager_loop = functools.partial(
        EagerLoop, progress_callback=progress_callback, progress_interval=progress_interval
    )
    training, loop, setup = _set_up(recipe, images, execution, resume_from, make_eager_loop)
    try:
        for epoch in range(training.epochs_done + 1, recipe.epochs + 1):
            yield _run_epoch(epoch, training, loop, setup)
    finally:
        loop.close()


def _set_up(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    resume_from: Mapping[str, Any] | None,
    make_eager_loop: Callable[[TrainingState], TrainingLoop],
) -> tuple[TrainingState, TrainingLoop, SetupInfo]:
    """Return the state before the first step and its loop: the eager loop if a CUDA graph cannot be captured."""
    started = time.perf_counter()
    training = TrainingState(recipe, images, execution, resume_from)
    built = time.perf_counter()
    if execution.engine == "plain":
        return training, make_eager_loop(training), SetupInfo(build_seconds=built - started)
    try:
        loop = CudaGraphLoop(training)
    except CaptureError as error:
        log.warning("%s: trains without a CUDA graph: %s", recipe.label, error)
        # A failed capture leaves the state undefined, so it is built again.
        training = TrainingState(recipe, images, execution, resume_from)
        return training, make_eager_loop(training), SetupInfo(build_seconds=time.perf_counter() - started)
    return training, loop, SetupInfo(built - started, time.perf_counter() - built, engine="graph")


def restore_epoch(
    recipe: Recipe, images: Images, execution: Execution, state: Mapping[str, Any], report: EpochReport
) -> EpochResult:
    """Return the epoch that `state` was taken after and `report` was made of, evaluated again but not trained.

    The arguments are those of `fit`, which continues from the same state, and so are the errors.
    """
    started = time.perf_counter()
    training = TrainingState(recipe, images, execution, state)
    setup = SetupInfo(build_seconds=time.perf_counter() - started)
    return EpochResult(report, _evaluate(training), training.averaged.model, setup, training.state_dict)


def _run_epoch(epoch: int, training: TrainingState, loop: TrainingLoop, setup: SetupInfo) -> EpochResult:
    """Train one epoch and evaluate the averaged weights on the validation images, if there are any."""
    started = time.perf_counter()
    loss, accuracy = training.train_epoch(epoch, loop)
    evaluation = _evaluate(training)
    report = EpochReport(
        epoch=epoch,
        train_loss=loss,
        train_accuracy=accuracy,
        val_loss=evaluation.loss if evaluation else None,
        val_accuracy=evaluation.accuracy if evaluation else None,
        learning_rate=training.learning_rates[epoch * len(training.batch_sizes) - 1],
        seconds=time.perf_counter() - started,
    )
    return EpochResult(report, evaluation, training.averaged.model, setup, training.state_dict)


def _evaluate(training: TrainingState) -> Evaluation | None:
    """Evaluate the averaged weights on the validation images; return None if there are none."""
    classifier, validation = training.averaged.model, training.images.validation
    return evaluate(classifier, validation, training.recipe.precision) if len(validation) else None

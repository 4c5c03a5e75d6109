"""The training engine: a plain PyTorch loop with everything resident on the device.

Nothing inside an epoch waits for the device: losses and hits add up there and are read once, at its end. What a step
does stands here, once; `graphs.py` captures the same steps in a CUDA graph.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.loading import Images
from fmnist_search.models.classifier import Classifier, build
from fmnist_search.models.initialization import set_initial_weights
from fmnist_search.models.layers import Dropout
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import EpochReport, SetupInfo
from fmnist_search.training.augmentation import augment, mix
from fmnist_search.training.autotune import to_memory_format
from fmnist_search.training.cuda_graph import CaptureError, CudaGraphLoop
from fmnist_search.training.evaluation import Evaluation, autocast, evaluate
from fmnist_search.training.optim import AveragedWeights, learning_rates, make_optimizer, sum_of_norms

log = logging.getLogger(__name__)

_global_rng_lock = threading.Lock()
"""Torch draws initial weights from a generator that all threads share."""


class EpochResult(NamedTuple):
    """What `fit` yields: figures, and the averaged weights they belong to, valid until the next epoch starts.

    `state_dict` gives all that `fit` needs to go on from here as if it had never stopped, valid as long.
    """

    report: EpochReport
    evaluation: Evaluation | None
    classifier: Classifier
    setup: SetupInfo
    state_dict: Callable[[], dict[str, Any]]


class Progress(NamedTuple):
    """An epoch on its way: the share of its images that is done, their mean loss and their accuracy."""

    epoch: int
    fraction: float
    loss: float
    accuracy: float


ProgressCallback = Callable[[Progress], None]
"""Sees how an epoch gets on, a few times a second at most."""
PROGRESS_INTERVAL_SECONDS = 0.2
"""Between two looks at a running epoch, each of which waits for the device."""


class TrainingLoop(Protocol):
    """How the steps of an epoch are run."""

    def run(self, order: Tensor, first_step: int) -> None:
        """One pass over the training images in this order; `first_step` counts the steps before it."""

    def close(self) -> None:
        """Give back what it holds on the device."""


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


class TrainingState:
    """Everything that changes while a recipe trains, and what one step does to it."""

    def __init__(
        self, recipe: Recipe, images: Images, execution: Execution, resume_from: Mapping[str, Any] | None = None
    ):
        self.recipe = recipe
        self.images = images
        self.device = torch.device(execution.device)
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed)
        self.model = to_memory_format(initial_classifier(recipe, images).to(self.device), execution.memory_format)
        self.batch_sizes = batch_sizes(len(images.train), recipe.batch_size)
        self.learning_rates = learning_rates(recipe, recipe.epochs * len(self.batch_sizes))
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.averaged = AveragedWeights(self.model, recipe.averaging.horizon * len(self.batch_sizes))
        self.epoch_totals = torch.zeros(2, dtype=_accumulator_dtype(self.device), device=self.device)
        self.epochs_done = 0
        self._fill_value = round(images.mean)
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.generator = self.generator
        if resume_from is not None:
            self._load_state_dict(resume_from)

    def state_dict(self) -> dict[str, Any]:
        """All that changes, between two epochs: weights, averages, optimizer, generator; valid until the next step."""
        return {
            "epochs": self.epochs_done,
            "network": self.model.state_dict(),
            "averaged": self.averaged.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs_done = state["epochs"]
        self.model.load_state_dict(state["network"])
        self.averaged.model.load_state_dict(state["averaged"])
        self.averaged.steps = self.epochs_done * len(self.batch_sizes)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def train_epoch(self, number: int, loop: TrainingLoop) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy of the raw weights as they moved."""
        count = len(self.images.train)
        order = torch.randperm(count, generator=self.generator, device=self.device)
        self.epoch_totals.zero_()
        self.model.train()
        loop.run(order, (number - 1) * len(self.batch_sizes))
        self.epochs_done = number
        loss, hits = self.epoch_totals.tolist()
        return loss / count, hits / count

    def backward(self, indices: Tensor) -> None:
        """The gradients of a batch, given by the places of its images; its loss and hits are added to the totals.

        The loss that is added is without the penalty on weights.
        """
        images, recipe = self.images.train, self.recipe
        pixels = augment(images.pixels[indices], recipe.augmentation, self._fill_value, self.generator)
        labels = images.labels[indices]
        share = None
        if recipe.augmentation.mixes_images:
            pixels, share = mix(pixels, recipe.augmentation, self.generator)
        with autocast(self.device, recipe.precision):
            logits = self.model(pixels)
        logits = logits.float()
        if share is None:
            loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        else:
            loss, labels = _mixed_loss(logits, labels, share, recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        penalty = recipe.optimizer.penalty
        torch.autograd.backward(loss + penalty * sum_of_norms(self.parameters) if penalty else loss)
        if recipe.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optimizer.clip_norm)
        self.epoch_totals += _loss_and_correct(loss.detach(), logits.detach(), labels)

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


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


def initial_classifier(recipe: Recipe, images: Images) -> Classifier:
    """The network with its initial weights, which come from the recipe's seed whatever else draws at the moment."""
    with _global_rng_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        classifier = build(recipe.model, *images.normalization_stats(recipe.normalisation), recipe.test_time)
        set_initial_weights(classifier.network, recipe)
        return classifier


def _accumulator_dtype(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type != "mps" else torch.float32


def _mixed_loss(logits: Tensor, labels: Tensor, fraction: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of images that `augment.mix` has mixed, and the label that has the larger share of each."""
    others = labels.roll(1)
    own_loss, others_loss = (
        functional.cross_entropy(logits, wanted, label_smoothing=label_smoothing, reduction="none")
        for wanted in (labels, others)
    )
    return torch.lerp(others_loss, own_loss, fraction).mean(), torch.where(fraction < 0.5, others, labels)


def _loss_and_correct(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([loss * len(labels), (logits.argmax(1) == labels).sum()])


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """The sizes of an epoch's batches: all alike but the last, and none of one image, which BatchNorm cannot take."""
    whole, rest = divmod(images, batch_size)
    sizes = [batch_size] * whole
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes

"""The training engine: a plain PyTorch loop with everything resident on the device.

Nothing inside an epoch waits for the device: losses and hits add up there and are read once, at its end.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.augment import augment
from fmnist_search.data import Images
from fmnist_search.errors import UserError
from fmnist_search.evaluate import Evaluation, autocast, evaluate
from fmnist_search.models import Classifier, build
from fmnist_search.optim import AveragedWeights, learning_rates, make_optimizer
from fmnist_search.recipe import FAMILIES, Execution, Recipe
from fmnist_search.results import EpochReport

PROBE_BATCH = 128
PROBE_MULT_ADDS = 7_470_000
"""Multiply-adds of the default cnn for one image."""
PROBE_ROUNDS = 7
PROBE_GAIN = 1.1
"""bfloat16 is chosen only where it is faster by more than the noise of a probe."""


class Epoch(NamedTuple):
    """What `fit` yields: figures, and the averaged weights they belong to, valid until the next epoch starts."""

    report: EpochReport
    evaluation: Evaluation | None
    classifier: Classifier


def fit(recipe: Recipe, images: Images, execution: Execution) -> Iterator[Epoch]:
    """Train a fresh network and yield after each epoch; whoever iterates decides whether it goes on.

    The same recipe, images, execution and library versions give the same numbers, bit for bit.

    Raises:
        UserError: the network is too large.
        torch.OutOfMemoryError: it does not fit on the device.
    """
    device = torch.device(execution.device)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    raw = build(recipe.model, images.mean, images.deviation)
    raw = raw.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(raw, recipe.optimizer)
    sizes = batch_sizes(len(images.train), recipe.batch_size)
    averaged = AveragedWeights(raw, recipe.averaging.horizon * len(sizes))
    rates = learning_rates(recipe, recipe.epochs * len(sizes))
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        epoch_rates = rates[(epoch - 1) * len(sizes) : epoch * len(sizes)]
        loss, accuracy = _train_epoch(recipe, images, raw, averaged, optimizer, sizes, epoch_rates, generator)
        evaluation = evaluate(averaged.model, images.validation, recipe.precision) if len(images.validation) else None
        report = EpochReport(
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=evaluation.loss if evaluation else None,
            val_accuracy=evaluation.accuracy if evaluation else None,
            learning_rate=epoch_rates[-1],
            seconds=time.perf_counter() - started,
        )
        yield Epoch(report, evaluation, averaged.model)


def _train_epoch(
    recipe: Recipe,
    images: Images,
    model: Classifier,
    averaged: AveragedWeights[Classifier],
    optimizer: torch.optim.Optimizer,
    sizes: list[int],
    rates: list[float],
    generator: torch.Generator,
) -> tuple[float, float]:
    """One pass over the training images; mean loss and accuracy of the raw weights as they moved."""
    device = images.train.pixels.device
    order = torch.randperm(len(images.train), generator=generator, device=device)
    totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    fill = round(images.mean)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for chosen, rate in zip(torch.split(order, sizes), rates, strict=True):
        pixels = augment(images.train.pixels[chosen], recipe.augmentation, fill, generator)
        labels = images.train.labels[chosen]
        with autocast(device, recipe.precision):
            logits = model(pixels)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if recipe.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        averaged.update()
        totals += _loss_and_hits(loss.detach(), logits.detach(), labels)
    loss_sum, hits = totals.tolist()
    return loss_sum / len(order), hits / len(order)


def _loss_and_hits(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
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


# -------------------------------------------------------------------------------------- execution


def resolve_execution(device: str = "auto", threads: int = 0) -> Execution:
    """How trials run on this machine: "auto" takes CUDA where there is one, no threads are torch's own number.

    Raises:
        UserError: the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device: {device!r} cannot be used here ({str(error).splitlines()[0]}); take --device cpu or auto"
        ) from error
    return Execution(device=device, threads=threads or torch.get_num_threads())


@contextlib.contextmanager
def settled(execution: Execution) -> Iterator[None]:
    """Torch set as the execution says, and set back afterwards; trials run inside it."""
    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.backends.cudnn.deterministic
    torch.set_num_threads(execution.threads or threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = tuned
        torch.backends.cudnn.deterministic = deterministic


def probe_precision(execution: Execution) -> str:
    """The faster precision for a training step of the standard network: "bfloat16" or "float32".

    Run once a study, which keeps the answer: noise shall never choose the numerics of a trial.
    """
    device = torch.device(execution.device)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"
    seconds = _step_seconds(execution, ("float32", "bfloat16"))
    return "bfloat16" if seconds["bfloat16"] * PROBE_GAIN < seconds["float32"] else "float32"


def measure_rate(execution: Execution, precision: str) -> float:
    """Multiply-adds a second in a training step of the standard network, backward pass counted as two forward ones."""
    return 3 * PROBE_BATCH * PROBE_MULT_ADDS / _step_seconds(execution, (precision,))[precision]


def _step_seconds(execution: Execution, precisions: Sequence[str]) -> dict[str, float]:
    """Median seconds of a step of the standard network, the precisions taking turns so that noise hits all alike."""
    device = torch.device(execution.device)
    pixels = torch.zeros(PROBE_BATCH, 28, 28, device=device)
    labels = torch.zeros(PROBE_BATCH, dtype=torch.int64, device=device)
    samples: dict[str, list[float]] = {precision: [] for precision in precisions}
    with settled(execution):
        model = build(FAMILIES["cnn"]()).to(device).to(memory_format=torch.channels_last)
        for _ in range(PROBE_ROUNDS):
            for precision in precisions:
                samples[precision].append(_time_step(model, pixels, labels, precision))
    return {precision: statistics.median(times[1:]) for precision, times in samples.items()}


def _time_step(model: Classifier, pixels: Tensor, labels: Tensor, precision: str) -> float:
    started = time.perf_counter()
    with autocast(pixels.device, precision):
        logits = model(pixels)
    torch.autograd.backward(functional.cross_entropy(logits.float(), labels))
    # Reading a gradient waits for the device, whichever it is.
    next(model.parameters()).grad.sum().item()  # type: ignore[union-attr]
    return time.perf_counter() - started

"""Everything that changes while a network trains: weights, optimizer, averages, generators and counters."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import Images
from fmnist_search.models.classifier import Classifier, build
from fmnist_search.models.initialization import set_initial_weights
from fmnist_search.models.layers import Dropout
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.augmentation import augment, mix
from fmnist_search.training.autotune import to_memory_format
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.loop import TrainingLoop
from fmnist_search.training.optim import AveragedWeights, learning_rates, make_optimizer, sum_of_norms

global_rng_lock = threading.Lock()
"""Torch draws initial weights from a generator that all threads share."""


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


def initial_classifier(recipe: Recipe, images: Images) -> Classifier:
    """The network with its initial weights, which come from the recipe's seed whatever else draws at the moment."""
    with global_rng_lock, torch.random.fork_rng(devices=[]):
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

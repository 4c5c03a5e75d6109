"""The state of a training: weights, optimizer, averages, generator and counters, and what one step does to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import Images
from fmnist_search.models.classifier import Classifier, build, global_rng_lock
from fmnist_search.models.initialization import set_initial_weights
from fmnist_search.models.layers import Dropout
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.augmentation import augment, mix
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.loop import TrainingLoop
from fmnist_search.training.optim import AveragedWeights, learning_rates, make_optimizer, sum_of_norms
from fmnist_search.training.runtime import to_memory_format


class TrainingState:
    """Everything that changes while a recipe trains.

    `learning_rates` holds the rate of every step of the training, `batch_sizes` the sizes of an epoch's batches, and
    `epoch_totals` (2,) the summed loss and the number of hits of the current epoch, on the device.
    """

    def __init__(
        self, recipe: Recipe, images: Images, execution: Execution, resume_from: Mapping[str, Any] | None = None
    ):
        """Build network and optimizer from the recipe's seed, or from a `state_dict()` of the same recipe.

        Raises:
            UserError: if the network is too large.
            torch.OutOfMemoryError: if it does not fit on the device.
        """
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
        """Return the state between two epochs: weights, averages, optimizer, generator; valid until the next step."""
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
        """Train epoch `number`, counted from 1, on all training images; synchronises at its end.

        Returns:
            Mean loss and accuracy (0..1) of the raw weights, each batch before its step.
        """
        count = len(self.images.train)
        order = torch.randperm(count, generator=self.generator, device=self.device)
        self.epoch_totals.zero_()
        self.model.train()
        loop.run(order, (number - 1) * len(self.batch_sizes))
        self.epochs_done = number
        loss, hits = self.epoch_totals.tolist()
        return loss / count, hits / count

    def backward(self, indices: Tensor) -> None:
        """Compute the gradients of a batch, and add its loss and its hits to `epoch_totals`; never synchronises.

        Args:
            indices: The positions of the batch's images among the training images, (N,) int64 on the device.

        The loss that is added does not contain the penalty on weights.
        """
        images, recipe = self.images.train, self.recipe
        pixels = augment(images.pixels[indices], recipe.augmentation, self._fill_value, self.generator)
        labels = images.labels[indices]
        own_fraction = None
        if recipe.augmentation.mixes_images:
            pixels, own_fraction = mix(pixels, recipe.augmentation, self.generator)
        with autocast(self.device, recipe.precision):
            logits = self.model(pixels)
        logits = logits.float()
        if own_fraction is None:
            loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        else:
            loss, labels = _mixed_loss(logits, labels, own_fraction, recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        penalty = recipe.optimizer.penalty
        torch.autograd.backward(loss + penalty * sum_of_norms(self.parameters) if penalty else loss)
        if recipe.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optimizer.clip_norm)
        self.epoch_totals += _loss_and_correct(loss.detach(), logits.detach(), labels)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the optimizer changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def initial_classifier(recipe: Recipe, images: Images) -> Classifier:
    """Return the network with initial weights that depend on the recipe's seed alone.

    Raises:
        UserError: if the network is too large.
    """
    with global_rng_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        mean, std = images.normalization_stats(recipe.normalisation)
        classifier = build(recipe.model, mean, std, recipe.test_time, recipe.data.num_classes)
        set_initial_weights(classifier.network, recipe)
        return classifier


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches: all equal but the last, and none of 1, which BatchNorm cannot take."""
    full_batches, rest = divmod(images, batch_size)
    sizes = [batch_size] * full_batches
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def _accumulator_dtype(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type != "mps" else torch.float32


def _mixed_loss(logits: Tensor, labels: Tensor, own_fraction: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the mean loss of images that `augmentation.mix` mixed, and the label (N,) with the larger share of each.

    `own_fraction` (N,) is the share of each image's own label; the rest belongs to the image before it in the batch.
    """
    others = labels.roll(1)
    own_loss, others_loss = (
        functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        for target in (labels, others)
    )
    return torch.lerp(others_loss, own_loss, own_fraction).mean(), torch.where(own_fraction < 0.5, others, labels)


def _loss_and_correct(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed loss and the number of hits of a batch, (2,), from its mean loss."""
    return torch.stack([loss * len(labels), (logits.argmax(1) == labels).sum()])

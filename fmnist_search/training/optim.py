"""Optimizers, learning-rate schedules and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from fmnist_search.recipe.groups import Optimizer
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.muon import Muon

Model = TypeVar("Model", bound=nn.Module)

ADAM_BETA2 = 0.999

# One-cycle after Smith (arXiv 1708.07120), with the start and end divisors of torch's OneCycleLR.
DIV_FACTOR = 25.0
FINAL_DIV_FACTOR = 1e4


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return a fused optimizer of the model's trainable parameters.

    Weight decay applies to parameters of two or more dimensions, so not to biases and normalisation layers.
    """
    groups = parameter_groups(model, settings)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(
            groups, settings.learning_rate, momentum=settings.momentum, nesterov=nesterov, fused=fused
        )
    rules: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}
    return rules[settings.name](groups, settings.learning_rate, betas=(settings.momentum, ADAM_BETA2), fused=fused)


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Return torch's groups of the trainable parameters: those of two or more dimensions, and those of fewer.

    With Muon, the weights of all layers but the last are a group of their own, which it orthogonalizes.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    hidden = weights[:-1] if settings.name == "muon" else []
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": settings.weight_decay, "orthogonal": True, "nesterov": settings.nesterov},
        {"params": weights[len(hidden) :], "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def sum_of_norms(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum, a scalar, of the Euclidean norms of all parameters of two or more dimensions.

    The gradient of each is the parameter divided by its norm, and 0 if the parameter is 0.
    """
    return torch.stack([torch.linalg.vector_norm(p) for p in parameters if p.ndim > 1]).sum()


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """Return the learning rate of each step of a training; `optimizer.learning_rate` is the highest of a schedule."""
    schedule = _SCHEDULES[recipe.schedule.name]
    peak = recipe.optimizer.learning_rate
    return [peak * schedule(step / max(steps - 1, 1), recipe.schedule.warmup) for step in range(steps)]


def _constant(_: float, __: float) -> float:
    return 1.0


def _cosine(progress: float, _: float) -> float:
    return _cosine_interpolation(1.0, 0.0, progress)


def _one_cycle(progress: float, warmup: float) -> float:
    start = 1 / DIV_FACTOR
    if progress < warmup:
        return _cosine_interpolation(start, 1.0, progress / warmup)
    return _cosine_interpolation(1.0, start / FINAL_DIV_FACTOR, (progress - warmup) / (1 - warmup))


def _cosine_interpolation(start: float, end: float, progress: float) -> float:
    """Return the value at `progress` (0..1) of half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}


class AveragedWeights(Generic[Model]):
    """Exponential moving average of a model's parameters and of its BatchNorm statistics.

    `model` is a copy of the model, in evaluation mode, that holds the averages; `steps` counts the updates. The decay
    grows with the steps until it reaches that of the horizon, as in TensorFlow's ExponentialMovingAverage with
    `num_updates`, so that the initial weights are soon forgotten. With a horizon of 0 the average is the model itself.
    """

    def __init__(self, model: Model, horizon_steps: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = math.exp(-1 / horizon_steps) if horizon_steps > 0 else 0.0
        self.steps = 0
        self._averages = _floating_state(self.model)
        self._sources = _floating_state(model)

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the model's current weights."""
        self.steps += 1
        torch._foreach_lerp_(self._averages, self._sources, self.update_weight(self.steps))

    @torch.no_grad()
    def update_with_weight(self, weight: torch.Tensor) -> None:
        """Update the averages with a weight (a scalar tensor) that is read from the device, as a CUDA graph needs."""
        differences = torch._foreach_sub(self._sources, self._averages)
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(self._averages, differences)

    def update_weight(self, step: int) -> float:
        """Return the weight (0..1) of the model's weights after a step in the average; steps count from 1."""
        return 1 - min(self._decay, (1 + step) / (10 + step))


def _floating_state(model: nn.Module) -> list[torch.Tensor]:
    """Return parameters and floating-point buffers, in the same order for two copies of a model."""
    state = [*model.parameters(), *model.buffers()]
    return [tensor.detach() for tensor in state if tensor.is_floating_point()]

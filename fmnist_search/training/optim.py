"""Update rules, learning-rate curves and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from fmnist_search.recipe import groups
from fmnist_search.recipe.recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)

ADAM_BETA2 = 0.999

# One-cycle after Smith (arXiv 1708.07120), with the start and end divisors of torch's OneCycleLR.
DIV_FACTOR = 25.0
FINAL_DIV_FACTOR = 1e4


def make_optimizer(model: nn.Module, settings: groups.Optimizer) -> torch.optim.Optimizer:
    """The update rule over the model's parameters; weights decay, biases and norms (one dimension) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(
            groups, settings.learning_rate, momentum=settings.momentum, nesterov=nesterov, fused=fused
        )
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(groups, settings.learning_rate, betas=(settings.momentum, ADAM_BETA2), fused=fused)


def sum_of_norms(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the Euclidean norms of the weight matrices, which are all parameters of two or more dimensions.

    Its gradient is each matrix over its norm, and 0 where the matrix is.
    """
    return torch.stack([torch.linalg.vector_norm(p) for p in parameters if p.ndim > 1]).sum()


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The rate of each of a training's steps; every curve's highest value is `optimizer.learning_rate`."""
    curve = _SCHEDULES[recipe.schedule.name]
    peak = recipe.optimizer.learning_rate
    return [peak * curve(step / max(steps - 1, 1), recipe.schedule.warmup) for step in range(steps)]


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
    """Half a cosine from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}


class AveragedWeights(Generic[Model]):
    """Exponential moving average of a model's parameters and of its BatchNorm statistics.

    `model` is a copy in evaluation mode that holds the averages, `step_counts` counts what it has taken in. The memory
    grows with the steps until it reaches the horizon (as in TensorFlow's ExponentialMovingAverage with `num_updates`),
    so that the initial weights are soon forgotten. A horizon of no steps copies the weights.
    """

    def __init__(self, model: Model, horizon_steps: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = math.exp(-1 / horizon_steps) if horizon_steps > 0 else 0.0
        self.steps = 0
        self._averages = _floating_state(self.model)
        self._sources = _floating_state(model)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        self.steps += 1
        torch._foreach_lerp_(self._averages, self._sources, self.update_weight(self.steps))

    @torch.no_grad()
    def update_with_weight(self, weight: torch.Tensor) -> None:
        """The same with the share of the present weights read from the device, which a captured step needs."""
        moves = torch._foreach_sub(self._sources, self._averages)
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(self._averages, moves)

    def update_weight(self, step: int) -> float:
        """How much of the averages the weights after a step make up, steps counted from 1."""
        return 1 - min(self._decay, (1 + step) / (10 + step))


def _floating_state(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and floating-point buffers, in an order that two copies of a model share."""
    state = [*model.parameters(), *model.buffers()]
    return [tensor.detach() for tensor in state if tensor.is_floating_point()]

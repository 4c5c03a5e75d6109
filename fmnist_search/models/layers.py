"""Layers that several families choose by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

NEVER_FALLING = ("relu", "leaky_relu", "elu")
"""Activations that keep the order of what they are given; a PReLU may learn not to."""


def activation(name: str) -> nn.Module:
    """A fresh activation of that name; one a layer, since PReLU has weights of its own."""
    return ACTIVATIONS[name]()


class Dropout(nn.Module):
    """Dropout that draws from a training's own generator, so that trainings side by side do not disturb each other."""

    generator: torch.Generator | None = None

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, values: Tensor) -> Tensor:
        """In training, values with some set to 0 and the others scaled up; in evaluation the values as they are."""
        if not self.training:
            return values
        kept = 1 - self.probability
        return values * torch.empty_like(values).bernoulli_(kept, generator=self.generator).div_(kept)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that does not count its batches: nothing reads the count, and it costs a kernel a layer and step."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, with statistics of the batch in training and running ones in evaluation."""
        assert self.momentum is not None
        return functional.batch_norm(
            images,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )

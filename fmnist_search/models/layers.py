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

MONOTONIC_ACTIVATIONS = ("relu", "leaky_relu", "elu")
"""Activations that keep the order of what they are given; a PReLU may learn not to."""


def make_activation(name: str) -> nn.Module:
    """A fresh activation of that name; one a layer, since PReLU has weights of its own."""
    return ACTIVATIONS[name]()


def activation_and_pool(name: str, pool_size: int) -> list[nn.Module]:
    """An activation and a maximum pool; a pool of 1 is none.

    The maximum commutes with an activation that never falls, which then has less to do.
    """
    if pool_size == 1:
        return [make_activation(name)]
    pool = nn.MaxPool2d(pool_size)
    return [pool, make_activation(name)] if name in MONOTONIC_ACTIVATIONS else [make_activation(name), pool]


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


class GlobalAverage(nn.Module):
    """Mean over height and width: (N, C, H, W) to (N, C)."""

    def forward(self, images: Tensor) -> Tensor:
        """The mean of each channel."""
        # With the channels last in memory, `mean(dim=(2, 3))` hands back a gradient of the other layout, and on a CPU
        # what comes before it takes five times as long.
        return images.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


class Flatten(nn.Module):
    """(N, C, H, W) to (N, H·W·C): `nn.Flatten` with the channels last, as they lie in memory.

    A linear layer behind it is the same function with its columns in another order, and nothing is copied, neither
    forward nor backward.
    """

    def forward(self, images: Tensor) -> Tensor:
        """All values of each image."""
        return images.permute(0, 2, 3, 1).flatten(1)

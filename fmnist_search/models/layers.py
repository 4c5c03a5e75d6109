"""Layers that families share. This module imports torch: families import it in `build_network`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmnist_search.models.activations import ACTIVATIONS, MONOTONIC_ACTIVATIONS

NUM_GROUPS = 8
"""Groups of a group normalisation, where they divide the channels; otherwise there is one."""


def make_activation(name: str) -> nn.Module:
    """Return a new activation of that name. Each layer needs its own, because a PReLU has weights."""
    activation: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return activation


def activation_and_pool(name: str, pool_size: int, pool: str = "max") -> list[nn.Module]:
    """Return an activation and a pool of `pool_size` x `pool_size`, "max" or "average"; a pool of size 1 is left out.

    The maximum commutes with an activation that never decreases. The pool then comes first, so that the activation has
    fewer values to compute.
    """
    activation = make_activation(name)
    if pool_size == 1:
        return [activation]
    if pool == "average":
        return [activation, nn.AvgPool2d(pool_size)]
    layers = [nn.MaxPool2d(pool_size), activation]
    return layers if name in MONOTONIC_ACTIVATIONS else layers[::-1]


def stem_layers(factor: int) -> list[nn.Module]:
    """Return a layer that makes squares of `factor` x `factor` pixels channels; no layer for 1."""
    return [nn.PixelUnshuffle(factor)] if factor > 1 else []


def normalisation_layers(name: str, channels: int) -> list[nn.Module]:
    """Return the normalisation of that name, "batch" or "group"; no layer for "none"."""
    match name:
        case "batch":
            return [BatchNorm(channels)]
        case "group":
            return [nn.GroupNorm(NUM_GROUPS if channels % NUM_GROUPS == 0 else 1, channels)]
        case _:
            return []


def dropout_layers(probability: float) -> list[nn.Module]:
    """Return a dropout of that probability; no layer for 0."""
    return [Dropout(probability)] if probability else []


class Dropout(nn.Module):
    """Dropout with a random generator of its own, so that trainings in other threads do not change its numbers."""

    generator: torch.Generator | None = None

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`: in training mode some set to 0 and the others scaled up, in evaluation mode unchanged."""
        if not self.training:
            return values
        kept = 1 - self.probability
        return values * torch.empty_like(values).bernoulli_(kept, generator=self.generator).div_(kept)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that does not count its batches: nothing reads the count, and each costs a kernel launch."""

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images: by the batch's statistics in training mode, by the running ones in evaluation."""
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
        """Return the mean of each channel."""
        # With the channels last in memory, the gradient of `mean(dim=(2, 3))` has the other layout, and on a CPU the
        # layers before it take five times as long.
        return images.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


class Flatten(nn.Module):
    """(N, C, H, W) to (N, H·W·C): `nn.Flatten` with the channels last, as they are in memory.

    A linear layer after it is the same function with its columns in another order, and nothing is copied, neither
    forward nor backward.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return all values of each image."""
        return images.permute(0, 2, 3, 1).flatten(1)


class DownsamplingConv2d(nn.Conv2d):
    """A convolution 1 x 1 with a stride, without bias: (N, inputs, H, W) to (N, outputs, H / stride, W / stride).

    With channels last and fewer input channels than it computes at once, oneDNN writes past a buffer when it computes
    the gradient of such weights (oneDNN issue 6035): the process ends, or the gradient is wrong. The pixels are then
    selected before the convolution, which gives the same values.
    """

    SAFE_CHANNELS = 16
    """Channels that oneDNN computes at once with AVX-512; with AVX2, where the fault was seen, there are 8."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return one pixel of each square of `stride` x `stride` pixels, with `outputs` channels."""
        if self.in_channels >= self.SAFE_CHANNELS:
            return super().forward(images)
        rows, columns = self.stride
        return functional.conv2d(images[:, :, ::rows, ::columns], self.weight)


class Residual(nn.Module):
    """A residual block of two convolutions: (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation_name: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm(outputs)
        self.relu1 = make_activation(activation_name)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(outputs)
        self.relu2 = make_activation(activation_name)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(DownsamplingConv2d(inputs, outputs, stride), BatchNorm(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images for the next block."""
        shortcut = images if self.downsample is None else self.downsample(images)
        inner = self.relu1(self.bn1(self.conv1(images)))
        out: Tensor = self.relu2(self.bn2(self.conv2(inner)) + shortcut)
        return out

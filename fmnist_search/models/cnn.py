"""The family that the search is about: blocks of convolutions, each of its own width and kernel size.

    block  = 1 or 2 x (convolution k x k, same padding -> normalisation -> activation)
    network = block, pool, block, pool, ..., block -> global average -> [hidden layer] -> dropout -> logits

Pooling stands between blocks, so that five blocks still see an image (28, 14, 7, 3, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fmnist_search.errors import UserError
from fmnist_search.models.blocks import IMAGE_SIZE, MAX_DEPTH, BlockArchitecture
from fmnist_search.models.layers import (
    ACTIVATIONS,
    MONOTONIC_ACTIVATIONS,
    BatchNorm,
    Dropout,
    GlobalAverage,
    make_activation,
)
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import Value, hyperparameter

DEFAULT_KERNEL_SIZE = 3
NUM_GROUPS = 8


def _kernel_field(block: int) -> int:
    return hyperparameter(0, f"kernel size of block {block}; 0 takes the default", choices=(3, 5, 7))  # type: ignore[no-any-return]


@register_family("cnn")
@dataclass(frozen=True)
class Cnn(BlockArchitecture):
    """Hyperparameters of a `cnn`. Kernels of blocks beyond `depth` are 0, as their widths are."""

    default_widths = (32, 64, 128, 128, 128)

    depth: int = hyperparameter(3, "number of blocks", low=1, high=MAX_DEPTH)
    kernel_1: int = _kernel_field(1)
    kernel_2: int = _kernel_field(2)
    kernel_3: int = _kernel_field(3)
    kernel_4: int = _kernel_field(4)
    kernel_5: int = _kernel_field(5)
    convolutions: int = hyperparameter(1, "convolutions a block", choices=(1, 2))
    norm: str = hyperparameter("batch", "normalisation", choices=("batch", "group", "none"))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    pool: str = hyperparameter("max", "pooling between blocks", choices=("max", "average"))
    pool_size: int = hyperparameter(2, "side and stride of the pooling", low=2, high=4)
    dropout: float = hyperparameter(0.0, "dropout before the last layer", low=0, high=0.95)
    hidden: int = hyperparameter(0, "units of a hidden layer in the head; 0 has none", low=0, high=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fill_defaults("kernel", (DEFAULT_KERNEL_SIZE,) * MAX_DEPTH)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel sizes of the blocks that are there."""
        return tuple(getattr(self, f"kernel_{block}") for block in range(1, self.depth + 1))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Widths and kernels matter up to `depth`, the pool where there are two blocks."""
        if name in ("pool", "pool_size"):
            return int(values.get("depth", MAX_DEPTH)) > 1
        return super().is_active(name.replace("kernel_", "width_"), values)

    def build_network(self, num_classes: int) -> nn.Module:
        """The blocks and their head.

        Raises:
            UserError: the pooling leaves nothing of the image.
        """
        self._check_pooling()
        layers: list[nn.Module] = []
        channels = 1
        for block, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), start=1):
            for _ in range(self.convolutions):
                layers += self._conv_layers(channels, width, kernel)
                channels = width
            if block < self.depth:
                layers = self._add_pool(layers)
        return nn.Sequential(*layers, GlobalAverage(), *self._head_layers(channels, num_classes))

    def _check_pooling(self) -> None:
        side = IMAGE_SIZE
        for block in range(1, self.depth):
            if side // self.pool_size == 0:
                raise UserError(
                    f"model.pool_size: pooling by {self.pool_size} leaves nothing of the image after block {block} "
                    f"(side {side}); take model.depth = {block} or a smaller model.pool_size"
                )
            side //= self.pool_size

    def _conv_layers(self, inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        """Convolution, normalisation, activation; no bias where the normalisation takes it away again."""
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=self.norm == "none")
        return [convolution, *self._norm_layers(outputs), make_activation(self.activation)]

    def _add_pool(self, layers: list[nn.Module]) -> list[nn.Module]:
        """A block and its pool. The maximum commutes with an activation that never falls, which then has less to do."""
        pool = _POOLS[self.pool](self.pool_size)
        if self.pool == "max" and self.activation in MONOTONIC_ACTIVATIONS:
            return [*layers[:-1], pool, layers[-1]]
        return [*layers, pool]

    def _norm_layers(self, channels: int) -> list[nn.Module]:
        if self.norm == "none":
            return []
        if self.norm == "group":
            groups = NUM_GROUPS if channels % NUM_GROUPS == 0 else 1
            return [nn.GroupNorm(groups, channels)]
        return [BatchNorm(channels)]

    def _head_layers(self, channels: int, classes: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        if self.hidden:
            layers += [nn.Linear(channels, self.hidden), make_activation(self.activation)]
        if self.dropout:
            layers.append(Dropout(self.dropout))
        return [*layers, nn.Linear(self.hidden or channels, classes)]


_POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}

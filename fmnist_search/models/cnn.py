"""The family that the search is about: blocks of convolutions, each of its own width and kernel size.

    block  = 1 or 2 x (convolution k x k, same padding -> normalisation -> activation)
    network = block, pool, block, pool, ..., block -> global average -> [hidden layer] -> dropout -> logits

Pooling stands between blocks, so that five blocks still see an image (28, 14, 7, 3, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fmnist_search.errors import UserError
from fmnist_search.hyperparameters import Value, hyperparameter
from fmnist_search.models.layers import ACTIVATIONS, NEVER_FALLING, BatchNorm, Dropout, activation
from fmnist_search.recipe import Architecture, architecture

SIDE = 28
MAX_DEPTH = 5
DEFAULT_WIDTHS = (32, 64, 128, 128, 128)
DEFAULT_KERNEL = 3
GROUP = 8


def _width(block: int) -> int:
    return hyperparameter(0, f"channels of block {block}; 0 takes the default", low=1, high=4096)  # type: ignore[no-any-return]


def _kernel(block: int) -> int:
    return hyperparameter(0, f"kernel size of block {block}; 0 takes the default", choices=(3, 5, 7))  # type: ignore[no-any-return]


@architecture("cnn")
@dataclass(frozen=True)
class Cnn(Architecture):
    """Hyperparameters of a `cnn`. Widths and kernels of blocks beyond `depth` are 0: there is no such block."""

    depth: int = hyperparameter(3, "number of blocks", low=1, high=MAX_DEPTH)
    width_1: int = _width(1)
    width_2: int = _width(2)
    width_3: int = _width(3)
    width_4: int = _width(4)
    width_5: int = _width(5)
    kernel_1: int = _kernel(1)
    kernel_2: int = _kernel(2)
    kernel_3: int = _kernel(3)
    kernel_4: int = _kernel(4)
    kernel_5: int = _kernel(5)
    convolutions: int = hyperparameter(1, "convolutions a block", choices=(1, 2))
    norm: str = hyperparameter("batch", "normalisation", choices=("batch", "group", "none"))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    pool: str = hyperparameter("max", "pooling between blocks", choices=("max", "average"))
    pool_size: int = hyperparameter(2, "side and stride of the pooling", low=2, high=4)
    dropout: float = hyperparameter(0.0, "dropout before the last layer", low=0, high=0.95)
    hidden: int = hyperparameter(0, "units of a hidden layer in the head; 0 has none", low=0, high=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        for block in range(1, MAX_DEPTH + 1):
            for name, default in (("width", DEFAULT_WIDTHS[block - 1]), ("kernel", DEFAULT_KERNEL)):
                given = getattr(self, f"{name}_{block}")
                value = (given or default) if block <= self.depth else 0
                object.__setattr__(self, f"{name}_{block}", value)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the blocks that are there."""
        return tuple(getattr(self, f"width_{block}") for block in range(1, self.depth + 1))

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel sizes of the blocks that are there."""
        return tuple(getattr(self, f"kernel_{block}") for block in range(1, self.depth + 1))

    @classmethod
    def in_use(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Widths and kernels matter up to `depth`, the pool where there are two blocks."""
        stem, _, block = name.rpartition("_")
        depth = int(values.get("depth", MAX_DEPTH))
        if stem in ("width", "kernel"):
            return int(block) <= depth
        return depth > 1 if name in ("pool", "pool_size") else True

    def network(self, classes: int) -> nn.Module:
        """The blocks and their head.

        Raises:
            UserError: the pooling leaves nothing of the image.
        """
        self._check_pooling()
        layers: list[nn.Module] = []
        channels = 1
        for block, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), start=1):
            for _ in range(self.convolutions):
                layers += self._convolution(channels, width, kernel)
                channels = width
            if block < self.depth:
                layers = self._pooled(layers)
        return nn.Sequential(*layers, GlobalAverage(), *self._head(channels, classes))

    def _check_pooling(self) -> None:
        side = SIDE
        for block in range(1, self.depth):
            if side // self.pool_size == 0:
                raise UserError(
                    f"model.pool_size: pooling by {self.pool_size} leaves nothing of the image after block {block} "
                    f"(side {side}); take model.depth = {block} or a smaller model.pool_size"
                )
            side //= self.pool_size

    def _convolution(self, inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        """Convolution, normalisation, activation; no bias where the normalisation takes it away again."""
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=self.norm == "none")
        return [convolution, *self._norm(outputs), activation(self.activation)]

    def _pooled(self, layers: list[nn.Module]) -> list[nn.Module]:
        """A block and its pool. The maximum commutes with an activation that never falls, which then has less to do."""
        pool = _POOLS[self.pool](self.pool_size)
        if self.pool == "max" and self.activation in NEVER_FALLING:
            return [*layers[:-1], pool, layers[-1]]
        return [*layers, pool]

    def _norm(self, channels: int) -> list[nn.Module]:
        if self.norm == "none":
            return []
        if self.norm == "group":
            groups = GROUP if channels % GROUP == 0 else 1
            return [nn.GroupNorm(groups, channels)]
        return [BatchNorm(channels)]

    def _head(self, channels: int, classes: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        if self.hidden:
            layers += [nn.Linear(channels, self.hidden), activation(self.activation)]
        if self.dropout:
            layers.append(Dropout(self.dropout))
        return [*layers, nn.Linear(self.hidden or channels, classes)]


class GlobalAverage(nn.Module):
    """Mean over height and width: (N, C, H, W) to (N, C)."""

    def forward(self, images: Tensor) -> Tensor:
        """The mean of each channel."""
        # With the channels last in memory, `mean(dim=(2, 3))` hands back a gradient of the other layout, and on a CPU
        # what comes before it takes five times as long.
        return images.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


_POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}

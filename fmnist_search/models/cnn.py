"""The family that the search is about: blocks of convolutions, each of its own width and kernel size.

    block   = 1 or 2 x (convolution k x k, same padding -> normalisation -> activation)
    network = [stem] -> block, pool, block, pool, ..., block -> head -> [hidden layer] -> dropout -> logits

There are pools only between blocks, so that the fifth block still has an image (sides 28, 14, 7, 3, 1).

The stem "space_to_depth" makes the 2 x 2 pixels of each square four channels, as in TResNet (arXiv 2003.13630). The
blocks then work on images of half the side (14, 7, 3, 1), which costs about a quarter of the multiply-adds. The head
"average" takes the mean of each channel; "flatten" keeps all values of the last block, so that the last layers see
where in the image each value is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.blocks import MAX_DEPTH, BlockArchitecture
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import Value, hyperparameter

if TYPE_CHECKING:
    from torch import nn

DEFAULT_KERNEL_SIZE = 3

STEM_FACTORS = {"none": 1, "space_to_depth": 2}
"""The stems, and by which factor each divides the sides of an image; the channels grow by its square."""


def _kernel_field(block: int) -> int:
    return hyperparameter(0, f"kernel size of block {block}; 0 takes the default", choices=(3, 5, 7))  # type: ignore[no-any-return]


@register_family("cnn")
@dataclass(frozen=True)
class Cnn(BlockArchitecture):
    """Hyperparameters of a `cnn`. Widths and kernels of blocks beyond `depth` are 0."""

    default_widths = (32, 64, 128, 128, 128)

    depth: int = hyperparameter(3, "number of blocks", low=1, high=MAX_DEPTH)
    stem: str = hyperparameter(
        "none", "layer before the blocks; space_to_depth makes 2 x 2 pixels four channels", choices=tuple(STEM_FACTORS)
    )
    kernel_1: int = _kernel_field(1)
    kernel_2: int = _kernel_field(2)
    kernel_3: int = _kernel_field(3)
    kernel_4: int = _kernel_field(4)
    kernel_5: int = _kernel_field(5)
    convolutions: int = hyperparameter(1, "convolutions per block", choices=(1, 2))
    norm: str = hyperparameter("batch", "normalisation", choices=("batch", "group", "none"))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    pool: str = hyperparameter("max", "pooling between blocks", choices=("max", "average"))
    pool_size: int = hyperparameter(2, "side and stride of the pooling", low=2, high=4)
    head: str = hyperparameter(
        "average",
        "what the last layers see of the last block: the mean of each channel, or all values",
        choices=("average", "flatten"),
    )
    dropout: float = hyperparameter(0.0, "dropout before the last layer", low=0, high=0.95)
    hidden: int = hyperparameter(0, "units of a hidden layer in the head; 0 has none", low=0, high=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fill_defaults("kernel", (DEFAULT_KERNEL_SIZE,) * MAX_DEPTH)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel sizes of the blocks up to `depth`."""
        return tuple(getattr(self, f"kernel_{block}") for block in range(1, self.depth + 1))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Return False for widths and kernels of blocks beyond `depth`, and for the pool of a single block."""
        if name in ("pool", "pool_size"):
            return int(values.get("depth", MAX_DEPTH)) > 1
        return super().is_active(name.replace("kernel_", "width_"), values)

    def build_network(self, num_classes: int) -> nn.Module:
        """Return the stem, the blocks and their head.

        Raises:
            UserError: if the pooling leaves nothing of the image.
        """
        from torch import nn

        from fmnist_search.models import layers

        side = self._last_side()
        features = self.widths[-1] * (side**2 if self.head == "flatten" else 1)
        modules = [*layers.stem_layers(STEM_FACTORS[self.stem]), *self._block_layers()]
        modules.append(layers.Flatten() if self.head == "flatten" else layers.GlobalAverage())
        if self.hidden:
            modules += [nn.Linear(features, self.hidden), layers.make_activation(self.activation)]
        modules += layers.dropout_layers(self.dropout)
        return nn.Sequential(*modules, nn.Linear(self.hidden or features, num_classes))

    def _block_layers(self) -> list[nn.Module]:
        from torch import nn

        from fmnist_search.models import layers

        modules: list[nn.Module] = []
        channels = STEM_FACTORS[self.stem] ** 2
        for block, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), start=1):
            for convolution in range(1, self.convolutions + 1):
                # No bias before a normalisation, which would subtract it again.
                modules.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=self.norm == "none"))
                modules += layers.normalisation_layers(self.norm, width)
                is_pooled = convolution == self.convolutions and block < self.depth
                modules += layers.activation_and_pool(self.activation, self.pool_size if is_pooled else 1, self.pool)
                channels = width
        return modules

    def _last_side(self) -> int:
        """Return the side of the images in the last block, in pixels."""
        side = IMAGE_SIZE // STEM_FACTORS[self.stem]
        for block in range(1, self.depth):
            if side // self.pool_size == 0:
                raise UserError(
                    f"model.pool_size: pooling by {self.pool_size} leaves nothing of the image after block {block} "
                    f"(side {side}); take model.depth = {block} or a smaller model.pool_size"
                )
            side //= self.pool_size
        return side

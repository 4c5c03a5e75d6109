"""Small networks of few parameters: blocks whose normalisation comes last, and one channel before the last layer.

block   = convolution k x k, same padding -> activation -> maximum pool -> batch normalisation
network = blocks -> convolution k x k to one channel -> logits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.blocks import KERNEL_SIZES, BlockArchitecture, pooled_size
from fmnist_search.models.presets import PLAIN_SGD, register_preset
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import hyperparameter

if TYPE_CHECKING:
    from torch import nn


@register_family("simple_cnn")
@dataclass(frozen=True)
class SimpleCnn(BlockArchitecture):
    """Hyperparameters of a `simple_cnn`."""

    default_widths = (8, 16, 32, 32, 32)

    kernel: int = hyperparameter(3, "kernel size of every convolution", choices=KERNEL_SIZES)
    pool_size: int = hyperparameter(2, "side and stride of the pooling; 1 leaves it out", low=1, high=4)
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))

    def build_network(self, num_classes: int) -> nn.Module:
        """Return the blocks, a convolution to one channel and a linear layer for the logits.

        Raises:
            UserError: if the pooling leaves nothing of the image.
        """
        from torch import nn

        from fmnist_search.models import layers

        modules: list[nn.Module] = []
        channels, side = 1, IMAGE_SIZE
        for block, width in enumerate(self.widths, start=1):
            side = pooled_size(side, self.pool_size, block)
            modules.append(nn.Conv2d(channels, width, self.kernel, padding=self.kernel // 2))
            modules += [*layers.activation_and_pool(self.activation, self.pool_size), layers.BatchNorm(width)]
            channels = width
        modules += [nn.Conv2d(channels, 1, self.kernel, padding=self.kernel // 2), layers.Flatten()]
        return nn.Sequential(*modules, nn.Linear(side * side, num_classes))


register_preset(
    "simple-cnn",
    SimpleCnn(),
    {**PLAIN_SGD, "batch_size": 64, "epochs": 100, "data.validation": 0.2},
    published_accuracy="87.2 (validation 88.1)",
    parameters=1_941,
    mult_adds=299_301,
)

"""Small networks of few parameters: blocks whose normalisation comes last, and one channel before the last layer.

block   = convolution k x k, same padding -> activation -> maximum pool -> batch normalisation
network = blocks -> convolution k x k to one channel -> logits
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fmnist_search.models.blocks import IMAGE_SIZE, KERNEL_SIZES, BlockArchitecture, pooled_size
from fmnist_search.models.layers import ACTIVATIONS, BatchNorm, Flatten, activation_and_pool
from fmnist_search.models.presets import PLAIN_SGD, register_preset
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import hyperparameter


@register_family("simple_cnn")
@dataclass(frozen=True)
class SimpleCnn(BlockArchitecture):
    """Hyperparameters of a `simple_cnn`."""

    default_widths = (8, 16, 32, 32, 32)

    kernel: int = hyperparameter(3, "kernel size of every convolution", choices=KERNEL_SIZES)
    pool_size: int = hyperparameter(2, "side and stride of the pooling; 1 pools nothing", low=1, high=4)
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))

    def build_network(self, num_classes: int) -> nn.Module:
        """The blocks, one channel, logits.

        Raises:
            UserError: the pooling leaves nothing of the image.
        """
        layers: list[nn.Module] = []
        channels, side = 1, IMAGE_SIZE
        for block, width in enumerate(self.widths, start=1):
            side = pooled_size(side, self.pool_size, block)
            layers += [self._conv_layer(channels, width), *activation_and_pool(self.activation, self.pool_size)]
            layers.append(BatchNorm(width))
            channels = width
        return nn.Sequential(*layers, self._conv_layer(channels, 1), Flatten(), nn.Linear(side * side, num_classes))

    def _conv_layer(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, self.kernel, padding=self.kernel // 2)


register_preset(
    "simple-cnn",
    SimpleCnn(),
    {**PLAIN_SGD, "batch_size": 64, "epochs": 100, "data.validation": 0.2},
    published_accuracy="87.2 (validation 88.1)",
    parameters=1_941,
)

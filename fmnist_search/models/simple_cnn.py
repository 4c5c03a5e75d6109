"""Small networks of few parameters: blocks whose normalisation comes last, and one channel before the last layer.

block   = convolution k x k, same padding -> activation -> maximum pool -> batch normalisation
network = blocks -> convolution k x k to one channel -> logits
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fmnist_search.models.blocks import KERNELS, SIDE, Blocks, pooled_side
from fmnist_search.models.layers import ACTIVATIONS, BatchNorm, Flatten, activated_and_pooled
from fmnist_search.models.presets import PLAIN_SGD, preset
from fmnist_search.recipe.hyperparameters import hyperparameter
from fmnist_search.recipe.recipe import architecture


@architecture("simple_cnn")
@dataclass(frozen=True)
class SimpleCnn(Blocks):
    """Hyperparameters of a `simple_cnn`."""

    default_widths = (8, 16, 32, 32, 32)

    kernel: int = hyperparameter(3, "kernel size of every convolution", choices=KERNELS)
    pool_size: int = hyperparameter(2, "side and stride of the pooling; 1 pools nothing", low=1, high=4)
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))

    def network(self, classes: int) -> nn.Module:
        """The blocks, one channel, logits.

        Raises:
            UserError: the pooling leaves nothing of the image.
        """
        layers: list[nn.Module] = []
        channels, side = 1, SIDE
        for block, width in enumerate(self.widths, start=1):
            side = pooled_side(side, self.pool_size, block)
            layers += [self._convolution(channels, width), *activated_and_pooled(self.activation, self.pool_size)]
            layers.append(BatchNorm(width))
            channels = width
        return nn.Sequential(*layers, self._convolution(channels, 1), Flatten(), nn.Linear(side * side, classes))

    def _convolution(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, self.kernel, padding=self.kernel // 2)


preset(
    "simple-cnn",
    SimpleCnn(),
    {**PLAIN_SGD, "batch_size": 64, "epochs": 100, "data.validation": 0.2},
    published="87.2 (validation 88.1)",
    parameters=1_941,
)

"""The classical plan: blocks of convolutions, then layers that see all of the image.

block   = 1 or 2 x convolution k x k -> [normalisation] -> activation -> [maximum pool]
network = blocks -> [dropout] -> hidden layers -> [dropout] -> logits

The two convolutions of a block follow each other with nothing between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fmnist_search.models.blocks import IMAGE_SIZE, KERNEL_SIZES, BlockArchitecture, convolved_size, pooled_size
from fmnist_search.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Dropout,
    Flatten,
    activation_and_pool,
    make_activation,
)
from fmnist_search.models.presets import EPOCHS, LEARNING_RATE, PLAIN_SGD, register_preset
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import Value, hyperparameter


def _hidden_field(layer: int, default: int) -> int:
    return hyperparameter(default, f"units of hidden layer {layer}; 0 has none", low=0, high=4096)  # type: ignore[no-any-return]


def _dropout_field(layer: str) -> float:
    return hyperparameter(0.0, f"dropout before {layer}", low=0, high=0.95)  # type: ignore[no-any-return]


@register_family("convnet")
@dataclass(frozen=True)
class ConvNet(BlockArchitecture):
    """Hyperparameters of a `convnet`. What belongs to hidden layers that are not there is 0."""

    default_widths = (32, 64, 128, 128, 128)

    kernel: int = hyperparameter(3, "kernel size of every convolution", choices=KERNEL_SIZES)
    padding: str = hyperparameter("valid", "same keeps the image's size, valid pads nothing", choices=("same", "valid"))
    convolutions: int = hyperparameter(1, "convolutions a block", choices=(1, 2))
    norm: str = hyperparameter("none", "normalisation, of hidden layers too", choices=("none", "batch"))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    pool_size: int = hyperparameter(2, "side and stride of the pooling; 1 pools nothing", low=1, high=4)
    hidden_1: int = _hidden_field(1, 128)
    hidden_2: int = _hidden_field(2, 0)
    dropout_1: float = _dropout_field("the first layer behind the blocks")
    dropout_2: float = _dropout_field("the layer behind the first hidden one")
    dropout_3: float = _dropout_field("the layer behind the second hidden one")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_2", "dropout_2", "dropout_3"):
            if not self.is_active(name, vars(self)):
                object.__setattr__(self, name, type(getattr(self, name))(0))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Widths matter up to `depth`, dropout and a second hidden layer behind hidden layers that are there."""
        if name in ("hidden_2", "dropout_2"):
            return bool(values.get("hidden_1", True))
        if name == "dropout_3":
            return bool(values.get("hidden_1", True)) and bool(values.get("hidden_2", True))
        return super().is_active(name, values)

    def build_network(self, num_classes: int) -> nn.Module:
        """The blocks and the layers behind them.

        Raises:
            UserError: kernels or pools leave nothing of the image.
        """
        layers: list[nn.Module] = []
        channels, side = 1, IMAGE_SIZE
        for block, width in enumerate(self.widths, start=1):
            for _ in range(self.convolutions):
                side = side if self.padding == "same" else convolved_size(side, self.kernel, block)
                layers.append(self._conv_layer(channels, width))
                channels = width
            side = pooled_size(side, self.pool_size, block)
            layers += [*self._norm_layers(width), *activation_and_pool(self.activation, self.pool_size)]
        return nn.Sequential(*layers, Flatten(), *self._head_layers(channels * side * side, num_classes))

    def _conv_layer(self, inputs: int, outputs: int) -> nn.Module:
        padding = self.kernel // 2 if self.padding == "same" else 0
        return nn.Conv2d(inputs, outputs, self.kernel, padding=padding)

    def _norm_layers(self, width: int) -> list[nn.Module]:
        return [BatchNorm(width)] if self.norm == "batch" else []

    def _head_layers(self, features: int, classes: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        hidden = [units for units in (self.hidden_1, self.hidden_2) if units]
        dropouts = (self.dropout_1, self.dropout_2, self.dropout_3)
        for units, dropout in zip(hidden, dropouts, strict=False):
            layers += [
                *_dropout_layers(dropout),
                nn.Linear(features, units),
                *self._norm_layers(units),
                make_activation(self.activation),
            ]
            features = units
        return [*layers, *_dropout_layers(dropouts[len(hidden)]), nn.Linear(features, classes)]


def _dropout_layers(probability: float) -> list[nn.Module]:
    return [Dropout(probability)] if probability else []


register_preset("convnet", ConvNet(), {"batch_size": 64}, published_accuracy="none")
register_preset(
    "conv-dropout",
    ConvNet(width_1=16, width_2=32, padding="same", dropout_1=0.25, dropout_2=0.5),
    {**PLAIN_SGD, "data.dataset": "mnist", "optimizer.learning_rate": 0.1, "batch_size": 32, "epochs": 5},
    published_accuracy="none",
    parameters=206_922,
)
register_preset(
    "lenet",
    ConvNet(
        depth=3,
        width_1=16,
        width_2=32,
        width_3=64,
        kernel=5,
        padding="same",
        hidden_2=64,
        dropout_1=0.5,
        dropout_2=0.5,
    ),
    {"batch_size": 128},
    published_accuracy="about 92, loss about 0.22",
    assumed_names=(LEARNING_RATE, EPOCHS),
)
register_preset(
    "tiny-conv",
    ConvNet(width_1=1, width_2=1, pool_size=1, hidden_1=64, hidden_2=32),
    {"batch_size": 64},
    published_accuracy="none",
    parameters=39_358,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
)
WIDE_CONVNET = ConvNet(depth=3, padding="same", convolutions=2, pool_size=1, hidden_1=256, hidden_2=64)
register_preset(
    "wide-conv",
    WIDE_CONVNET,
    {"batch_size": 64},
    published_accuracy="none",
    parameters=25_993_898,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
)
register_preset(
    "wide-conv-bn",
    dataclasses.replace(WIDE_CONVNET, norm="batch"),
    {"batch_size": 64},
    published_accuracy="none; learns faster as the rate rises",
    parameters=25_994_986,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
    deviations="trained at 1, 2, 4 and 8 times the rate",
)

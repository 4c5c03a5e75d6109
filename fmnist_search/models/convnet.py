"""The classical plan: blocks of convolutions, then fully connected layers.

block   = 1 or 2 x convolution k x k -> [normalisation] -> activation -> [maximum pool]
network = blocks -> [dropout] -> hidden layers -> [dropout] -> logits

The two convolutions of a block follow each other with nothing between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.blocks import KERNEL_SIZES, BlockArchitecture, convolved_size, pooled_size
from fmnist_search.models.presets import EPOCHS, LEARNING_RATE, PLAIN_SGD, register_preset
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import register_family
from fmnist_search.recipe.hyperparameters import Value, hyperparameter

if TYPE_CHECKING:
    from torch import nn


def _hidden_field(layer: int, default: int) -> int:
    return hyperparameter(default, f"units of hidden layer {layer}; 0 has none", low=0, high=4096)  # type: ignore[no-any-return]


def _dropout_field(layer: str) -> float:
    return hyperparameter(0.0, f"dropout before {layer}", low=0, high=0.95)  # type: ignore[no-any-return]


@register_family("convnet")
@dataclass(frozen=True)
class ConvNet(BlockArchitecture):
    """Hyperparameters of a `convnet`. Values of hidden layers that it does not have are 0."""

    default_widths = (32, 64, 128, 128, 128)

    kernel: int = hyperparameter(3, "kernel size of every convolution", choices=KERNEL_SIZES)
    padding: str = hyperparameter(
        "valid", "same keeps the image size, valid adds no padding", choices=("same", "valid")
    )
    convolutions: int = hyperparameter(1, "convolutions per block", choices=(1, 2))
    norm: str = hyperparameter("none", "normalisation, of hidden layers too", choices=("none", "batch"))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    pool_size: int = hyperparameter(2, "side and stride of the pooling; 1 leaves it out", low=1, high=4)
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
        """Return False for widths beyond `depth`, and for units and dropout after a hidden layer that is left out."""
        if name in ("hidden_2", "dropout_2"):
            return bool(values.get("hidden_1", True))
        if name == "dropout_3":
            return bool(values.get("hidden_1", True)) and bool(values.get("hidden_2", True))
        return super().is_active(name, values)

    def build_network(self, num_classes: int) -> nn.Module:
        """Return the blocks and the fully connected layers after them.

        Raises:
            UserError: if kernels or pools leave nothing of the image.
        """
        from torch import nn

        from fmnist_search.models import layers

        modules: list[nn.Module] = []
        channels, side = 1, IMAGE_SIZE
        padding = self.kernel // 2 if self.padding == "same" else 0
        for block, width in enumerate(self.widths, start=1):
            for _ in range(self.convolutions):
                side = side if self.padding == "same" else convolved_size(side, self.kernel, block)
                modules.append(nn.Conv2d(channels, width, self.kernel, padding=padding))
                channels = width
            side = pooled_size(side, self.pool_size, block)
            modules += layers.normalisation_layers(self.norm, width)
            modules += layers.activation_and_pool(self.activation, self.pool_size)
        modules.append(layers.Flatten())
        features = channels * side * side
        hidden = [units for units in (self.hidden_1, self.hidden_2) if units]
        dropouts = (self.dropout_1, self.dropout_2, self.dropout_3)
        for units, dropout in zip(hidden, dropouts, strict=False):
            modules += [*layers.dropout_layers(dropout), nn.Linear(features, units)]
            modules += [*layers.normalisation_layers(self.norm, units), layers.make_activation(self.activation)]
            features = units
        modules += layers.dropout_layers(dropouts[len(hidden)])
        return nn.Sequential(*modules, nn.Linear(features, num_classes))


register_preset(
    "convnet", ConvNet(), {"batch_size": 64}, published_accuracy="none", parameters=225_034, mult_adds=2_660_554
)
register_preset(
    "conv-dropout",
    ConvNet(width_1=16, width_2=32, padding="same", dropout_1=0.25, dropout_2=0.5),
    {**PLAIN_SGD, "data.dataset": "mnist", "optimizer.learning_rate": 0.1, "batch_size": 32, "epochs": 5},
    published_accuracy="none",
    parameters=206_922,
    mult_adds=1_237_002,
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
    parameters=147_274,
    mult_adds=5_435_914,
    assumed_names=(LEARNING_RATE, EPOCHS),
)
register_preset(
    "tiny-conv",
    ConvNet(width_1=1, width_2=1, pool_size=1, hidden_1=64, hidden_2=32),
    {"batch_size": 64},
    published_accuracy="none",
    parameters=39_358,
    mult_adds=51_858,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
)
WIDE_CONVNET = ConvNet(depth=3, padding="same", convolutions=2, pool_size=1, hidden_1=256, hidden_2=64)
register_preset(
    "wide-conv",
    WIDE_CONVNET,
    {"batch_size": 64},
    published_accuracy="none",
    parameters=25_993_898,
    mult_adds=250_270_154,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
)
register_preset(
    "wide-conv-bn",
    dataclasses.replace(WIDE_CONVNET, norm="batch"),
    {"batch_size": 64},
    published_accuracy="none; learns faster as the rate rises",
    parameters=25_994_986,
    mult_adds=250_271_242,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
    deviations="trained at 1, 2, 4 and 8 times the rate",
)

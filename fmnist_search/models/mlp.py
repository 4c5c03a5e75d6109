"""Fully connected networks: the baseline that convolutions are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.presets import EPOCHS, LEARNING_RATE, PLAIN_SGD, register_preset
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import Architecture, register_family
from fmnist_search.recipe.hyperparameters import Value, hyperparameter, hyperparameters

if TYPE_CHECKING:
    from torch import nn

NUM_PIXELS = IMAGE_SIZE**2


@register_family("mlp")
@dataclass(frozen=True)
class Mlp(Architecture):
    """Hyperparameters of an `mlp`: `depth` hidden layers, each with `shrink` times fewer units than the one before."""

    depth: int = hyperparameter(2, "number of hidden layers; 0 is a linear classifier", low=0, high=8)
    width: int = hyperparameter(256, "units of each hidden layer", low=1, high=8192)
    shrink: int = hyperparameter(1, "factor by which each further hidden layer has fewer units", low=1, high=8)
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    dropout: float = hyperparameter(0.0, "dropout after each hidden layer", low=0, high=0.95)
    input_dropout: float = hyperparameter(0.0, "dropout of the pixels", low=0, high=0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Recipes of equal networks are equal: values without an effect go back to their default.
        for name, spec in hyperparameters(type(self)).items():
            if not self.is_active(name, vars(self)):
                object.__setattr__(self, name, spec.default)

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return tuple(max(self.width // self.shrink**layer, 1) for layer in range(self.depth))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Return False for what describes hidden layers where there are none."""
        if name in ("depth", "input_dropout"):
            return True
        return int(values.get("depth", 2)) > (name == "shrink")

    def build_network(self, num_classes: int) -> nn.Module:
        """Return the hidden layers and a linear layer for the logits."""
        from torch import nn

        from fmnist_search.models import layers

        modules: list[nn.Module] = [nn.Flatten(), *layers.dropout_layers(self.input_dropout)]
        inputs = NUM_PIXELS
        for width in self.widths:
            modules += [nn.Linear(inputs, width), layers.make_activation(self.activation)]
            modules += layers.dropout_layers(self.dropout)
            inputs = width
        return nn.Sequential(*modules, nn.Linear(inputs, num_classes))


register_preset(
    "logistic",
    Mlp(depth=0),
    {"batch_size": 128, "epochs": 5},
    published_accuracy="about 85",
    parameters=7_850,
    mult_adds=7_850,
)
register_preset(
    "mlp-512",
    Mlp(width=512),
    {**PLAIN_SGD, "batch_size": 64, "epochs": 100, "data.validation": 0.2, "normalisation": "unit"},
    published_accuracy="83.8 (validation 84.3)",
    parameters=669_706,
    mult_adds=669_706,
)
register_preset(
    "mlp-256",
    Mlp(width=256),
    {"batch_size": 128},
    published_accuracy="about 89 (training 99: it overfits)",
    parameters=269_322,
    mult_adds=269_322,
    assumed_names=(LEARNING_RATE, EPOCHS),
    deviations="on request dropout (--set model.input_dropout=0.2 --set model.dropout=0.5) or a penalty on the norms "
    "of the weight matrices (--set optimizer.penalty=0.001, say)",
)
register_preset(
    "mlp-pyramid",
    Mlp(depth=3, width=256, shrink=2),
    {**PLAIN_SGD, "data.dataset": "mnist", "optimizer.learning_rate": 0.1, "batch_size": 32, "epochs": 5},
    published_accuracy="97.1 on MNIST for one of two networks",
    parameters=242_762,
    mult_adds=242_762,
)

"""A small family without convolutions: the ground under the others, and proof that families are pluggable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fmnist_search.hyperparameters import Value, hyperparameter, hyperparameters
from fmnist_search.models.layers import ACTIVATIONS, Dropout, activation
from fmnist_search.recipe import Architecture, architecture

PIXELS = 28 * 28


@architecture("mlp")
@dataclass(frozen=True)
class Mlp(Architecture):
    """Hyperparameters of an `mlp`: `depth` hidden layers of one width."""

    depth: int = hyperparameter(2, "number of hidden layers; 0 is a linear classifier", low=0, high=8)
    width: int = hyperparameter(256, "units of each hidden layer", low=1, high=8192)
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    dropout: float = hyperparameter(0.0, "dropout after each hidden layer", low=0, high=0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depth:
            # Equal networks are equal recipes, whatever was said of layers that are not there.
            for name, spec in hyperparameters(type(self)).items():
                object.__setattr__(self, name, spec.default if name != "depth" else 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return (self.width,) * self.depth

    @classmethod
    def in_use(cls, name: str, values: Mapping[str, Value]) -> bool:
        """All but `depth` describe hidden layers."""
        return name == "depth" or bool(values.get("depth", True))

    def network(self, classes: int) -> nn.Module:
        """Flatten, hidden layers, logits."""
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = PIXELS
        for width in self.widths:
            layers += [nn.Linear(inputs, width), activation(self.activation)]
            if self.dropout:
                layers.append(Dropout(self.dropout))
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, classes))

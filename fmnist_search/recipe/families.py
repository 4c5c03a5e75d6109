"""Families of networks: what one declares, and the registry by name."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.hyperparameters import (
    HyperparameterGroup,
    Value,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


# -------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Architecture(HyperparameterGroup, abc.ABC):
    """A family's hyperparameters, and how they become a network. One file in `models_app/` each."""

    family: ClassVar[str]
    prefix: ClassVar[str] = "model."

    @abc.abstractmethod
    def build_network(self, num_classes: int) -> nn.Module:
        """The network from normalised images (N, 1, 28, 28) to logits (N, classes)."""

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels or units, layer by layer: the name under which people recognise a network."""

    def pretrained_weights(self) -> Mapping[str, Tensor]:
        """Weights of the network, or of some of its layers, that were trained on ImageNet, by name.

        Raises:
            UserError: there are none, or they are out of reach.
        """
        raise UserError(
            f"initial_weights: there are no ImageNet weights for the family {self.family}; take other initial weights, "
            "or the preset resnet18"
        )

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Whether the field `name` matters, given the fields declared before it (a block that is not there)."""
        return True


FAMILIES: dict[str, type[Architecture]] = {}

Family = TypeVar("Family", bound=type[Architecture])


def register_family(name: str) -> Callable[[Family], Family]:
    """Class decorator: registers a family under the name that study files and recipes use."""

    def register(cls: Family) -> Family:
        cls.family = name
        FAMILIES[name] = cls
        return cls

    return register


def get_family(name: object) -> type[Architecture]:
    """The family of that name; UserError with the nearest known name where there is none."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"model.family: no family {name!r}; {did_you_mean(str(name), FAMILIES)}")
    return FAMILIES[name]

"""Families of networks: what a family declares, and the registry of families by name.

Nothing here needs torch: only `Architecture.build_network` and `pretrained_weights` of a family import it.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.hyperparameters import HyperparameterGroup, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture(HyperparameterGroup, abc.ABC):
    """The hyperparameters of one family, and the network that they describe. Each family has a file in `models/`.

    Importing that file must not import torch; `build_network` imports what it needs.
    """

    family: ClassVar[str]
    prefix: ClassVar[str] = "model."

    @abc.abstractmethod
    def build_network(self, num_classes: int) -> nn.Module:
        """Return the network from normalised images (N, 1, 28, 28) to logits (N, num_classes).

        Raises:
            UserError: if these hyperparameters do not make a network.
        """

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels or units, layer by layer: the name under which people recognise a network."""

    def pretrained_weights(self) -> Mapping[str, Tensor]:
        """Return ImageNet weights of the network, or of some of its layers, by their name in its `state_dict`.

        Raises:
            UserError: if there are none, or they cannot be read or downloaded.
        """
        raise UserError(
            f"initial_weights: there are no ImageNet weights for the family {self.family}; take other initial weights, "
            "or the preset resnet18"
        )

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Return whether the field `name` has an effect, given the values of the fields declared before it."""
        return True


class FamilyRegistry(Mapping[str, type[Architecture]]):
    """The registered families by name, in alphabetical order. The first access imports the modules of `models/`."""

    def __init__(self) -> None:
        self._families: dict[str, type[Architecture]] = {}

    def register(self, name: str, family: type[Architecture]) -> None:
        """Add a family under the name that study files and recipes use."""
        family.family = name
        self._families[name] = family

    def __getitem__(self, name: str) -> type[Architecture]:
        _import_families()
        return self._families[name]

    def __iter__(self) -> Iterator[str]:
        _import_families()
        return iter(sorted(self._families))

    def __len__(self) -> int:
        _import_families()
        return len(self._families)


def _import_families() -> None:
    # By name, because `models` is in a higher layer. Python imports it once, later calls are a dictionary look-up.
    importlib.import_module("fmnist_search.models")


FAMILIES = FamilyRegistry()
DEFAULT_FAMILY = "cnn"

Family = TypeVar("Family", bound=type[Architecture])


def register_family(name: str) -> Callable[[Family], Family]:
    """Return a class decorator that registers a family under the name that study files and recipes use."""

    def register(cls: Family) -> Family:
        FAMILIES.register(name, cls)
        return cls

    return register


def get(name: object) -> type[Architecture]:
    """Return the family of that name.

    Raises:
        UserError: if there is none; the message suggests the nearest name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"model.family: no family {name!r}; {did_you_mean(str(name), FAMILIES)}")
    return FAMILIES[name]

"""Families of networks: what a family declares, and the registry of families by name.

Nothing here needs torch: only `Architecture.build_network` and `pretrained_weights` of a family import it.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe import plugins
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the family's name and the values: another process finds the family of a plugin by its name."""
        return _restore, (self.family, dataclasses.asdict(self))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Return whether the field `name` has an effect, given the values of the fields declared before it."""
        return True


class FamilyRegistry(Mapping[str, type[Architecture]]):
    """The registered families by name, in alphabetical order. The first access imports the modules of `models/`.

    A name that they do not have may be that of a plugin, which is loaded then; see `plugins`.
    """

    def __init__(self) -> None:
        self._families: dict[str, type[Architecture]] = {}

    def register(self, name: str, family: type[Architecture]) -> None:
        """Add a family under the name that study files and recipes use.

        Raises:
            UserError: if the name cannot be that of a table, or is taken.
        """
        if not re.fullmatch(plugins.NAME_PATTERN, name) or name == "common":
            raise UserError(f"family {name!r}: is not a valid name; use small letters, digits and _, but not 'common'")
        _import_families()  # so that those of this package have their names first
        known = self._families.get(name)
        if known and (known.__module__, known.__qualname__) != (family.__module__, family.__qualname__):
            raise UserError(f"family {name!r}: is registered by {known.__module__} already; take another name")
        family.family = name
        self._families[name] = family
        plugins.note(name, family.__module__)

    def __getitem__(self, name: str) -> type[Architecture]:
        _import_families()
        if name not in self._families:
            plugins.load_family(name)
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


def _restore(family: str, values: Mapping[str, Value]) -> Architecture:
    return FAMILIES[family](**values)


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

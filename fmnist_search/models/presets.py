"""Published networks by name: what they are, how their authors trained them, and the accuracy that they published.

Each family registers its own presets with `register_preset`, in the file of the family. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.groups import Averaging, Optimizer
from fmnist_search.recipe.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A published network with its author's training.

    `recipe` holds both; of it, `assumed_names` names what the author does not say. `published_accuracy` is the
    author's accuracy, in percent of the test images unless it says otherwise. `parameters` and `mult_adds` (of one
    image) are recorded, so that listing presets does not build networks; None for a family at its defaults.
    `deviations` says what of the author's training the recipe leaves out, and how to ask for it.
    """

    name: str
    recipe: Recipe
    published_accuracy: str
    parameters: int | None = None
    mult_adds: int | None = None
    assumed_names: tuple[str, ...] = ()
    deviations: str = ""

    @property
    def notes(self) -> str:
        """What is assumed and what is left out, in one line."""
        assumed = f"assumed: {', '.join(self.assumed_names)}" if self.assumed_names else ""
        return "; ".join(part for part in (assumed, self.deviations) if part)


PRESETS: dict[str, Preset] = {}


def register_preset(
    name: str,
    model: Architecture,
    training: Mapping[str, object],
    *,
    published_accuracy: str,
    parameters: int,
    mult_adds: int,
    assumed_names: tuple[str, ...] = (),
    deviations: str = "",
) -> None:
    """Register a published network with the counts of its parameters and of its multiply-adds for one image.

    `training` holds what its author says of the training, by dotted name; the rest is Adam at 1e-3 for 10 epochs.
    """
    recipe = Recipe(model=model, optimizer=PLAIN_ADAM, averaging=Averaging(horizon=0.0), epochs=10).replace(training)
    PRESETS[name] = Preset(name, recipe, published_accuracy, parameters, mult_adds, assumed_names, deviations)


PLAIN_ADAM = Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0)
"""The optimizer that is assumed where an author names none."""

PLAIN_SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.nesterov": False}
LEARNING_RATE, EPOCHS, BATCH_SIZE = "optimizer.learning_rate", "epochs", "batch_size"


def get_preset(name: str) -> Preset:
    """Return the preset of that name, or the defaults of the family of that name.

    Raises:
        UserError: if there is neither; the message suggests the nearest name.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in FAMILIES:
        return Preset(name, Recipe(model=FAMILIES[name]()), published_accuracy="")
    raise UserError(f"{name!r}: no such preset or family; {did_you_mean(name, {*PRESETS, *FAMILIES})}")

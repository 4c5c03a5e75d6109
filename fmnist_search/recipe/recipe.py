"""The `Recipe`: everything that determines a training run, as a frozen value.

The search samples a recipe, the training engine takes one, and MLflow's parameters are its flat form. This module
needs neither torch nor a file format: `config.toml_files` reads and writes recipes as TOML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe import families
from fmnist_search.recipe.datasets import TRAINING_SET_SIZE
from fmnist_search.recipe.families import DEFAULT_FAMILY, FAMILIES, Architecture
from fmnist_search.recipe.groups import Augmentation, Averaging, Data, Optimizer, Schedule
from fmnist_search.recipe.hyperparameters import (
    MAX_SEED,
    Hyperparameter,
    HyperparameterGroup,
    Value,
    hyperparameter,
    hyperparameters,
)

INITIAL_WEIGHTS = (
    "default",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
    "imagenet",
)
"""How the weights of convolutions and linear layers are drawn before a training; "default" is that of torch."""

NORMALISATIONS = ("global", "per-pixel", "unit", "centred")
"""Pixels are normalised by one mean and standard deviation, by those of each pixel, or divided by 255."""

TEST_TIME_VIEWS = ("none", "flip", "shift", "flip+shift")
"""The changed copies of an image that test-time augmentation adds to it."""

SCHEMA_VERSION = 1

MAX_EPOCHS = 10_000
"""The largest number of epochs of a training."""


@dataclass(frozen=True)
class Recipe(HyperparameterGroup):
    """Everything that determines a training run. Equal recipes give equal results on equal machines."""

    model: Architecture = field(default_factory=lambda: FAMILIES[DEFAULT_FAMILY]())
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    averaging: Averaging = field(default_factory=Averaging)
    augmentation: Augmentation = field(default_factory=Augmentation)
    data: Data = field(default_factory=Data)
    epochs: int = hyperparameter(9, "passes over the training images", low=1, high=MAX_EPOCHS)
    batch_size: int = hyperparameter(128, "images per step", low=2, high=TRAINING_SET_SIZE)
    initial_weights: str = hyperparameter(
        "default", "how the initial weights are drawn; imagenet loads pretrained ones", choices=INITIAL_WEIGHTS
    )
    label_smoothing: float = hyperparameter(0.0, "share of the target that is spread over all classes", low=0, high=0.9)
    precision: str = hyperparameter(
        "float32", "number format of the forward and backward pass", choices=("float32", "bfloat16")
    )
    keep: str = hyperparameter(
        "val_accuracy", "metric that chooses the epoch whose weights are kept", choices=("val_accuracy", "val_loss")
    )
    patience: int = hyperparameter(
        0, "stop after this many epochs in a row without a better value of keep; 0 never stops", low=0, high=MAX_EPOCHS
    )
    normalisation: str = hyperparameter(
        "global",
        "by mean and deviation of all pixels, or of each pixel; unit scales to 0..1, centred to -0.5..0.5",
        choices=NORMALISATIONS,
    )
    test_time: str = hyperparameter(
        "none",
        "changed copies of an image over which probabilities are averaged",
        choices=TEST_TIME_VIEWS,
    )
    seed: int = hyperparameter(0, "seed of initial weights, order of images and augmentation", low=0, high=MAX_SEED)
    schema_version: int = hyperparameter(SCHEMA_VERSION, "version of the recipe format", choices=(SCHEMA_VERSION,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.data.training_count:
            raise UserError(
                f"batch_size: {self.batch_size} is larger than the {self.data.training_count} training images; "
                "take a smaller batch or more images"
            )
        if self.patience and not self.data.validation:
            raise UserError(
                f"patience: {self.patience} epochs without a better {self.keep} cannot be measured without validation "
                "images; hold some back (data.validation), or set patience = 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return nested tables of scalars, as in a TOML file: scalars first, `model` with its family."""
        scalars = {f.name: getattr(self, f.name) for f in _hyperparameter_fields()}
        tables = {name: dataclasses.asdict(getattr(self, name)) for name in _GROUPS}
        model = {"family": self.model.family, **dataclasses.asdict(self.model)}
        return {**scalars, "model": model, **tables}

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Recipe:
        """Return the recipe of nested tables. A missing field takes its default, so that old recipes still load.

        Raises:
            UserError: if a name is unknown, a type is wrong or a value is out of bounds; one line for each mistake.
        """
        return cls().replace(flatten_tables(tables))

    def to_flat_dict(self) -> dict[str, Value]:
        """Return every hyperparameter by dotted name: `model.depth`, `optimizer.learning_rate`, `batch_size`."""
        return flatten_tables(self.to_dict())

    def replace(self, changes: Mapping[str, object]) -> Recipe:
        """Return this recipe with other values, by dotted name. A new family starts from its own defaults.

        Raises:
            UserError: if a name is unknown, a type is wrong or a value is out of bounds; one line for each mistake.
        """
        family = families.get(changes.get("model.family", self.model.family))
        known = recipe_hyperparameters(family)
        values: dict[str, object] = {
            name: value
            for name, value in self.to_flat_dict().items()
            if not name.startswith("model.") or family is type(self.model)
        }
        values.update(changes)
        values.pop("model.family", None)
        problems: list[str] = []
        tables: dict[str, dict[str, Any]] = {"": {}}
        for name, value in values.items():
            if name not in known:
                problems.append(f"{name}: unknown hyperparameter; {did_you_mean(name, known)}")
                continue
            try:
                parsed = known[name].parse(value)
            except UserError as error:
                problems.extend(error.lines)
                continue
            table, _, attribute = name.rpartition(".")
            tables.setdefault(table, {})[attribute] = parsed
        if problems:
            raise UserError(*problems)
        parts: dict[str, Any] = {name: table(**tables.get(name, {})) for name, table in _GROUPS.items()}
        return Recipe(model=family(**tables.get("model", {})), **parts, **tables[""])

    def seed_independent_key(self) -> str:
        """Return a digest, 32 hexadecimal digits, that is equal for recipes that differ only in their seed.

        Studies store it. A hyperparameter that was added later is left out while it has its default.
        """
        known = recipe_hyperparameters(type(self.model))
        left_out = {name: spec.default for name, spec in known.items() if spec.added_later}
        values = {
            name: value
            for name, value in self.to_flat_dict().items()
            if name != "seed" and (name not in left_out or value != left_out[name])
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def label(self) -> str:
        """A short name for tables: family and widths, `cnn 32-64-128`."""
        return f"{self.model.family} {self.widths}".strip()

    @property
    def widths(self) -> str:
        """The network's widths as text, `32-64-128`."""
        return "-".join(map(str, self.model.widths))


_GROUPS: dict[str, type[HyperparameterGroup]] = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "averaging": Averaging,
    "augmentation": Augmentation,
    "data": Data,
}


def _hyperparameter_fields() -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(Recipe) if "limits" in f.metadata]


def flatten_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalars of nested tables by dotted name."""
    return dict(_flatten(tables))


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def recipe_hyperparameters(family: type[Architecture]) -> dict[str, Hyperparameter]:
    """Return all hyperparameters of recipes of this family by dotted name, those of the model first."""
    known = dict(hyperparameters(family, "model."))
    for name, table in _GROUPS.items():
        known |= hyperparameters(table, f"{name}.")
    return known | hyperparameters(Recipe)


def is_active(name: str, family: type[Architecture], values: Mapping[str, Value]) -> bool:
    """Return whether a hyperparameter has an effect, given the values by dotted name that are already chosen."""
    if name.startswith("model."):
        model = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
        return family.is_active(name.removeprefix("model."), model)
    if name == "optimizer.nesterov":
        return values.get("optimizer.name") in ("sgd", "muon")
    if name == "schedule.warmup":
        return values.get("schedule.name") == "one-cycle"
    return True

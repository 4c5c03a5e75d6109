"""What is trained (`Recipe`) and how it is run (`Execution`): frozen values, the hinge of the house.

A `Recipe` holds everything that determines a training run. The search samples one, the engine consumes one,
MLflow's parameters are its flat form. This module knows neither torch nor any file format: a family of networks
registers its own hyperparameters here through `register_family`, and `config.py` reads and writes TOML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET
from fmnist_search.recipe.hyperparameters import (
    MAX_SEED,
    Hyperparameter,
    HyperparameterGroup,
    Value,
    hyperparameter,
    hyperparameters,
)

if TYPE_CHECKING:
    pass
from fmnist_search.recipe import families
from fmnist_search.recipe.families import DEFAULT_FAMILY, FAMILIES, Architecture

TRAINING_SET_SIZE = 60_000
"""Images that the datasets of this format offer for training and validation together."""

INITIAL_WEIGHTS = (
    "default",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
    "imagenet",
)
"""How the weights of convolutions and linear layers are drawn before a training; torch has a default for each."""

NORMALISATIONS = ("global", "per-pixel", "unit")
"""Whether all pixels are brought to one mean and deviation, or each to its own, or are divided by 255 alone."""

TEST_TIME_VIEWS = ("none", "flip", "shift", "flip+shift")
"""Which changed copies of an image a network is asked about as well, once it is trained."""

SCHEMA_VERSION = 1


# ------------------------------------------------------------------------------------- the recipe


@dataclass(frozen=True)
class Data(HyperparameterGroup):
    """Which images a recipe trains on and is judged by. The split's rule stands in `data.py`."""

    prefix: ClassVar[str] = "data."
    dataset: str = hyperparameter(DEFAULT_DATASET, "name of the dataset", choices=DATASETS)
    train_images: int = hyperparameter(0, "stratified slice of the training part; 0 takes all of it", low=100)
    validation: int = hyperparameter(
        10_848,
        "images held back for validation, or their share",
        low=0,
        high=TRAINING_SET_SIZE - 100,
        share_of=TRAINING_SET_SIZE,
    )
    seed: int = hyperparameter(0, "seed of the split", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        available = TRAINING_SET_SIZE - self.validation
        if self.train_images > available:
            raise UserError(
                f"data.train_images: {self.train_images} is more than the {available} that validation leaves; "
                "take fewer, or 0 for all"
            )

    @property
    def training_count(self) -> int:
        """How many images are trained on."""
        return self.train_images or TRAINING_SET_SIZE - self.validation


@dataclass(frozen=True)
class Optimizer(HyperparameterGroup):
    """The update rule."""

    prefix: ClassVar[str] = "optimizer."
    name: str = hyperparameter("adamw", "update rule", choices=("sgd", "adam", "adamw"))
    learning_rate: float = hyperparameter(2e-3, "peak learning rate", above=0, high=100)
    momentum: float = hyperparameter(0.9, "momentum of sgd, first moment of adam and adamw", low=0, high=0.999)
    nesterov: bool = hyperparameter(True, "Nesterov's momentum (sgd)")
    weight_decay: float = hyperparameter(
        1e-2, "decay of weights, biases and norms spared; decoupled in adamw", low=0, high=10
    )
    clip_norm: float = hyperparameter(0.0, "largest norm of the gradient; 0 does not clip", low=0)
    penalty: float = hyperparameter(
        0.0, "penalty on the norms (not their squares) of the weight matrices, biases and norms spared", low=0, high=10
    )


@dataclass(frozen=True)
class Schedule(HyperparameterGroup):
    """The learning rate over the steps of a training."""

    prefix: ClassVar[str] = "schedule."
    name: str = hyperparameter("constant", "curve of the rate", choices=("constant", "cosine", "one-cycle"))
    warmup: float = hyperparameter(0.25, "share of the steps in which one-cycle rises", low=0, high=0.9)


@dataclass(frozen=True)
class Averaging(HyperparameterGroup):
    """Exponential moving average of the weights, which is what gets evaluated."""

    prefix: ClassVar[str] = "averaging."
    horizon: float = hyperparameter(0.3, "memory of the average in epochs; 0 averages nothing", low=0, high=100)


@dataclass(frozen=True)
class Augmentation(HyperparameterGroup):
    """Random changes of each training image, drawn per image and epoch, in this order."""

    prefix: ClassVar[str] = "augmentation."
    rotation: float = hyperparameter(0.0, "largest rotation in degrees, each way", low=0, high=180)
    shift: int = hyperparameter(0, "largest shift in pixels, each way", low=0, high=14)
    flip: float = hyperparameter(0.0, "probability of a horizontal flip", low=0, high=1)
    erasing: float = hyperparameter(0.0, "probability of erasing a random rectangle", low=0, high=1)
    mixup: float = hyperparameter(
        0.0, "alpha of the Beta that draws how much of another image is mixed in; 0 mixes nothing", low=0, high=100
    )
    cutmix: float = hyperparameter(
        0.0,
        "alpha of the Beta that draws how large a patch of another image is put in; 0 puts in none",
        low=0,
        high=100,
    )

    @property
    def mixes_images(self) -> bool:
        """Whether an image, and its label with it, is mixed with another."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Recipe(HyperparameterGroup):
    """Everything that determines a training run. Equal recipes give equal numbers on equal machines."""

    model: Architecture = field(default_factory=lambda: FAMILIES[DEFAULT_FAMILY]())
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    averaging: Averaging = field(default_factory=Averaging)
    augmentation: Augmentation = field(default_factory=Augmentation)
    data: Data = field(default_factory=Data)
    epochs: int = hyperparameter(9, "passes over the training images", low=1, high=10_000)
    batch_size: int = hyperparameter(128, "images a step", low=2, high=TRAINING_SET_SIZE)
    initial_weights: str = hyperparameter(
        "default", "how weights are drawn before training; imagenet has them trained", choices=INITIAL_WEIGHTS
    )
    label_smoothing: float = hyperparameter(0.0, "share of the target spread over all classes", low=0, high=0.9)
    precision: str = hyperparameter(
        "float32", "arithmetic of the forward and backward pass", choices=("float32", "bfloat16")
    )
    keep: str = hyperparameter(
        "val_accuracy", "what chooses the weights that are kept", choices=("val_accuracy", "val_loss")
    )
    patience: int = hyperparameter(
        0, "epochs in a row without a better figure of keep that end a training early; 0 never does", low=0, high=10_000
    )
    normalisation: str = hyperparameter(
        "global", "mean and deviation of all pixels together, or of each by itself; or 0..1", choices=NORMALISATIONS
    )
    test_time: str = hyperparameter(
        "none", "views of an image whose probabilities a trained network averages", choices=TEST_TIME_VIEWS
    )
    seed: int = hyperparameter(0, "seed of initial weights, order and augmentation", low=0, high=MAX_SEED)
    schema_version: int = hyperparameter(SCHEMA_VERSION, "version of this form", choices=(SCHEMA_VERSION,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.data.training_count:
            raise UserError(
                f"batch_size: {self.batch_size} is larger than the {self.data.training_count} training images; "
                "take a smaller batch or more images"
            )
        if self.patience and not self.data.validation:
            raise UserError(
                f"patience: {self.patience} epochs without a better {self.keep} are not told without validation "
                "images; hold some back (data.validation), or set patience = 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of scalars, as a TOML file shows them; scalars first, `model` with its family."""
        scalars = {f.name: getattr(self, f.name) for f in _hyperparameter_fields()}
        tables = {name: dataclasses.asdict(getattr(self, name)) for name in _GROUPS}
        model = {"family": self.model.family, **dataclasses.asdict(self.model)}
        return {**scalars, "model": model, **tables}

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Recipe:
        """The recipe of such tables. A field that is missing takes its default, so that old recipes still load.

        Raises:
            UserError: unknown names, wrong types, values out of bounds: one line per mistake.
        """
        return cls().replace(flatten_tables(tables))

    def to_flat_dict(self) -> dict[str, Value]:
        """Every hyperparameter under its dotted name: `model.depth`, `optimizer.learning_rate`, `batch_size`."""
        return flatten_tables(self.to_dict())

    def replace(self, changes: Mapping[str, object]) -> Recipe:
        """This recipe with other values, given by dotted name. Another family starts from its own defaults.

        Raises:
            UserError: one line per mistake.
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
        """A digest that two recipes share exactly when they differ in nothing but the seed."""
        values = {name: value for name, value in self.to_flat_dict().items() if name != "seed"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def label(self) -> str:
        """How people call it: family and widths, `cnn 32-64-128`."""
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
    """The scalars of nested tables by dotted name."""
    return dict(_flatten(tables))


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def recipe_hyperparameters(family: type[Architecture]) -> dict[str, Hyperparameter]:
    """All that a recipe of this family holds, the family's name apart, by dotted name, model first."""
    known = dict(hyperparameters(family, "model."))
    for name, table in _GROUPS.items():
        known |= hyperparameters(table, f"{name}.")
    return known | hyperparameters(Recipe)


def is_active(name: str, family: type[Architecture], values: Mapping[str, Value]) -> bool:
    """Whether a hyperparameter has any effect, given the values (by dotted name) that are already chosen."""
    if name.startswith("model."):
        model = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
        return family.is_active(name.removeprefix("model."), model)
    if name == "optimizer.nesterov":
        return values.get("optimizer.name") == "sgd"
    if name == "schedule.warmup":
        return values.get("schedule.name") == "one-cycle"
    return True

"""The groups of hyperparameters that recipes of every family have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET, TRAINING_SET_SIZE
from fmnist_search.recipe.hyperparameters import MAX_SEED, HyperparameterGroup, hyperparameter


@dataclass(frozen=True)
class Data(HyperparameterGroup):
    """The images that a recipe trains on and validates with. `data.split` splits them."""

    prefix: ClassVar[str] = "data."
    dataset: str = hyperparameter(DEFAULT_DATASET, "name of the dataset", choices=DATASETS)
    train_images: int = hyperparameter(
        0, "size of a stratified subset of the training images; 0 takes all", low=100, high=TRAINING_SET_SIZE
    )
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
        size = DATASETS[self.dataset].training_images
        if self.validation >= size:
            raise UserError(
                f"data.validation: {self.validation} images leave none of the {size:,} of {self.dataset} to train on; "
                f"give a smaller number, such as {round(0.18 * size)}"
            )
        available = size - self.validation
        if self.train_images > available:
            raise UserError(
                f"data.train_images: {self.train_images} is more than the {available} that validation leaves; "
                "take fewer, or 0 for all"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes of the dataset, which is that of the outputs of a network."""
        return len(DATASETS[self.dataset].classes)

    @property
    def training_count(self) -> int:
        """Number of images in the training set."""
        return self.train_images or DATASETS[self.dataset].training_images - self.validation


@dataclass(frozen=True)
class Optimizer(HyperparameterGroup):
    """The update rule."""

    prefix: ClassVar[str] = "optimizer."
    name: str = hyperparameter("adamw", "update rule", choices=("sgd", "adam", "adamw", "muon"))
    learning_rate: float = hyperparameter(2e-3, "peak learning rate", above=0, high=100)
    momentum: float = hyperparameter(0.9, "momentum of sgd and muon, first moment of adam and adamw", low=0, high=0.999)
    nesterov: bool = hyperparameter(True, "Nesterov's momentum (sgd, muon)")
    weight_decay: float = hyperparameter(
        1e-2, "weight decay, not of biases and norms; decoupled in adamw and muon", low=0, high=10
    )
    clip_norm: float = hyperparameter(0.0, "largest norm of the gradient; 0 turns clipping off", low=0, high=1e12)
    penalty: float = hyperparameter(
        0.0, "penalty on the norms (not their squares) of the weight matrices", low=0, high=10
    )


@dataclass(frozen=True)
class Schedule(HyperparameterGroup):
    """The learning rate over the steps of a training."""

    prefix: ClassVar[str] = "schedule."
    name: str = hyperparameter("constant", "shape of the learning rate", choices=("constant", "cosine", "one-cycle"))
    warmup: float = hyperparameter(0.25, "share of the steps in which the one-cycle rate rises", low=0, high=0.9)


@dataclass(frozen=True)
class Averaging(HyperparameterGroup):
    """Exponential moving average of the weights. The averaged weights are those that are evaluated."""

    prefix: ClassVar[str] = "averaging."
    horizon: float = hyperparameter(0.3, "time constant of the average in epochs; 0 turns it off", low=0, high=100)


@dataclass(frozen=True)
class Augmentation(HyperparameterGroup):
    """Random changes of each training image, applied in this order and drawn anew for each image and epoch."""

    prefix: ClassVar[str] = "augmentation."
    rotation: float = hyperparameter(0.0, "largest rotation in degrees, each way", low=0, high=180)
    shift: int = hyperparameter(0, "largest shift in pixels, each way", low=0, high=14)
    flip: float = hyperparameter(0.0, "probability of a horizontal flip", low=0, high=1)
    erasing: float = hyperparameter(0.0, "probability of erasing a random rectangle", low=0, high=1)
    mixup: float = hyperparameter(
        0.0, "alpha of the Beta distribution of the share of the other image; 0 turns it off", low=0, high=100
    )
    cutmix: float = hyperparameter(
        0.0,
        "alpha of the Beta distribution of the area of the patch from another image; 0 turns it off",
        low=0,
        high=100,
    )

    @property
    def mixes_images(self) -> bool:
        """Whether images and their labels are mixed with others."""
        return bool(self.mixup or self.cutmix)

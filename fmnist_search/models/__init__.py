"""Families of networks, one file each, and the `Classifier` around a network.

To add a family, write a file here with a dataclass of its hyperparameters under `@register_family("name")`, and add the
file to the import below. Study files, recipes, the search and the contract tests then know it.
"""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach
from fmnist_search.models import cnn, convnet, mlp, resnet, simple_cnn, vgg  # noqa: F401 - each registers its family

if TYPE_CHECKING:
    from fmnist_search.models.classifier import Classifier, Ensemble, build
    from fmnist_search.models.presets import PRESETS

__all__ = ["PRESETS", "Classifier", "Ensemble", "build"]
__getattr__, __dir__ = attach(
    __name__, {"PRESETS": "presets", "Classifier": "classifier", "Ensemble": "classifier", "build": "classifier"}
)

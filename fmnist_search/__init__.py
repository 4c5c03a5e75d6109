"""Fast, honest hyperparameter search over convolutional networks for Fashion-MNIST.

Names are imported on first use, so that `fmnist-search --help` needs neither torch nor mlflow nor optuna.
"""

import importlib
import logging
from typing import TYPE_CHECKING

from fmnist_search.version import VERSION

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.recipe.recipe import Recipe
    from fmnist_search.registry.packaging import load_model
    from fmnist_search.workflows.single_training import train
    from fmnist_search.workflows.study.api import run_study

__all__ = ["Recipe", "StudyConfig", "load_model", "run_study", "train"]
__version__ = VERSION

# Importing mlflow.pytorch raises the root logger's level to ERROR, which would silence our warnings.
logging.getLogger(__name__).setLevel(logging.WARNING)

_HOMES = {
    "Recipe": "config.study_config",
    "StudyConfig": "config.study_config",
    "load_model": "registry.packaging",
    "run_study": "workflows.study.api",
    "train": "workflows.single_training",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

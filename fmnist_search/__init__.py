"""Hyperparameter search over convolutional networks for Fashion-MNIST.

Names are imported on first use, so that `fmnist-search --help` imports neither torch nor mlflow nor optuna.
"""

import logging
from typing import TYPE_CHECKING

from fmnist_search._lazy import attach
from fmnist_search.version import VERSION

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.recipe.recipe import Recipe
    from fmnist_search.results.training import Decision, EpochReport
    from fmnist_search.training.loop import Progress
    from fmnist_search.workflows.single_training import train
    from fmnist_search.workflows.study.api import run_study
    from fmnist_search.workflows.trained_models import load_model
    from fmnist_search.workspace import Workspace

__all__ = [
    "Decision",
    "EpochReport",
    "Progress",
    "Recipe",
    "StudyConfig",
    "Workspace",
    "load_model",
    "run_study",
    "train",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Decision": "results.training",
        "EpochReport": "results.training",
        "Progress": "training.loop",
        "Recipe": "recipe.recipe",
        "StudyConfig": "config.study_config",
        "Workspace": "workspace",
        "load_model": "workflows.trained_models",
        "run_study": "workflows.study.api",
        "train": "workflows.single_training",
    },
)
__version__ = VERSION

# Importing mlflow.pytorch raises the root logger's level to ERROR, which would silence our warnings.
logging.getLogger(__name__).setLevel(logging.WARNING)

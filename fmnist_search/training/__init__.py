"""Train one recipe: `run_trial` for a whole trial, `fit` for its epochs, `evaluate` for a trained classifier."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.training.engine import fit
    from fmnist_search.training.evaluation import evaluate
    from fmnist_search.training.trial import run_trial

__all__ = ["evaluate", "fit", "run_trial"]
__getattr__, __dir__ = attach(__name__, {"evaluate": "evaluation", "fit": "engine", "run_trial": "trial"})

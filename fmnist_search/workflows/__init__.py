"""What users do: run a study, promote its best recipes, train, resume a training."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.workflows.single_training import resume, train, train_seeds
    from fmnist_search.workflows.study.api import promote, run_study

__all__ = ["promote", "resume", "run_study", "train", "train_seeds"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "promote": "study.api",
        "resume": "single_training",
        "run_study": "study.api",
        "train": "single_training",
        "train_seeds": "single_training",
    },
)

"""The search with Optuna, which only this package imports: storage, samplers, pruners, and what a study has found."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.search.study_store import StudyStore

__all__ = ["StudyStore"]
__getattr__, __dir__ = attach(__name__, {"StudyStore": "study_store"})

"""What trainings, trials and studies result in: frozen values without torch."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.results.champion import Champion, ConfirmedScore, LearningRateResult
    from fmnist_search.results.study import Importances, StopReason, StudySummary, TrialRecord
    from fmnist_search.results.training import (
        Accuracy,
        Decision,
        EpochReport,
        Overhead,
        SetupInfo,
        Stopper,
        TrialResult,
        TrialState,
    )

__all__ = [
    "Accuracy",
    "Champion",
    "ConfirmedScore",
    "Decision",
    "EpochReport",
    "Importances",
    "LearningRateResult",
    "Overhead",
    "SetupInfo",
    "StopReason",
    "Stopper",
    "StudySummary",
    "TrialRecord",
    "TrialResult",
    "TrialState",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Accuracy": "training",
        "Champion": "champion",
        "ConfirmedScore": "champion",
        "Decision": "training",
        "EpochReport": "training",
        "Importances": "study",
        "LearningRateResult": "champion",
        "Overhead": "training",
        "SetupInfo": "training",
        "StopReason": "study",
        "Stopper": "training",
        "StudySummary": "study",
        "TrialRecord": "study",
        "TrialResult": "training",
        "TrialState": "training",
    },
)

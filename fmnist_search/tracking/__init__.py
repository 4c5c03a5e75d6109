"""MLflow: runs are written through an outbox and a sender, and read back."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.tracking.run_logger import RunLogger
    from fmnist_search.tracking.store import MlflowStore

__all__ = ["MlflowStore", "RunLogger"]
__getattr__, __dir__ = attach(__name__, {"MlflowStore": "store", "RunLogger": "run_logger"})

"""MLflow's model registry: models are registered, compared with the champion, evaluated, exported and loaded."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.registry.packaging import load_model

__all__ = ["load_model"]
__getattr__, __dir__ = attach(__name__, {"load_model": "packaging"})

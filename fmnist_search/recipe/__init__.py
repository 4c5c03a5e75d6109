"""What is trained and how it runs: frozen values without torch."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach
from fmnist_search.recipe import families

if TYPE_CHECKING:
    from fmnist_search.recipe.execution import Execution
    from fmnist_search.recipe.recipe import Recipe

__all__ = ["Execution", "Recipe", "families"]
__getattr__, __dir__ = attach(__name__, {"Execution": "execution", "Recipe": "recipe"})

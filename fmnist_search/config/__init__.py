"""Study files: their tables, reading them, checking them, and the space that they define."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.config.space import Space
    from fmnist_search.config.study_config import StudyConfig

__all__ = ["Space", "StudyConfig"]
__getattr__, __dir__ = attach(__name__, {"Space": "space", "StudyConfig": "study_config"})

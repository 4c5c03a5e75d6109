"""What every test may ask for: the real images, a small slice of them, and how trials run here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fmnist_search.data.files import DataSource
    from fmnist_search.data.images import Images
    from fmnist_search.recipe.execution import Execution

# Test processes share the cores: with a thread each they do not fight for them. It must stand before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples everywhere, so that what is red for one is red for all; slow machines are no failure.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the tracking server or the working folder of whoever runs it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("FMNIST_SEARCH_HOME", raising=False)


@pytest.fixture(scope="session")
def source() -> DataSource:
    """Where the real images come from: the user's own cache, so that a machine fetches them once."""
    from fmnist_search.data.files import DataSource
    from fmnist_search.workspace import image_cache_folder

    return DataSource(image_cache_folder())


@pytest.fixture(scope="session")
def images(source: DataSource) -> Images:
    """A thousand real images to train on and a thousand to validate."""
    from fmnist_search.data.loading import load_images
    from fmnist_search.recipe.groups import Data

    return load_images(Data(train_images=1_000, validation=1_000), source)


@pytest.fixture(scope="session")
def execution() -> Execution:
    """One thread: the same bits on every machine, whatever the number of its cores."""
    from fmnist_search.training.runtime import resolve_execution

    return resolve_execution("cpu", threads=1)

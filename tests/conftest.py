"""Fixtures of all tests: the real images, a small subset of them, and how trials run."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fmnist_search.data.files import DataSource
    from fmnist_search.data.images import Images
    from fmnist_search.recipe.execution import Execution

# Test processes run in parallel, so each has one thread. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every machine, and no deadline, since machines may be slow.
settings.register_profile("fmnist-search", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("fmnist-search")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave the libraries and the tests out of garbage collections: they are a million objects, and never garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the tracking server and the working folder of the user who runs them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("FMNIST_SEARCH_HOME", raising=False)
    monkeypatch.delenv("FMNIST_SEARCH_STORAGE", raising=False)


@pytest.fixture(scope="session")
def source() -> DataSource:
    """The source of the real images: the user's cache, so that they are read or downloaded once per machine."""
    from fmnist_search.data.files import DataSource
    from fmnist_search.workspace import image_cache_folder

    return DataSource(image_cache_folder())


@pytest.fixture(scope="session")
def images(source: DataSource) -> Images:
    """500 real training images and 500 validation images."""
    from fmnist_search.data.loading import load_images
    from fmnist_search.recipe.groups import Data

    return load_images(Data(train_images=500, validation=500), source)


@pytest.fixture(scope="session")
def execution() -> Execution:
    """Execution with one thread, so that results do not depend on the number of cores."""
    from fmnist_search.training.devices import resolve_execution

    return resolve_execution("cpu", threads=1)

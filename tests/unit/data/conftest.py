"""The real files of Fashion-MNIST, and systems with and without the dataset package."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fmnist_search.data.files import TRAIN_LABELS, DataSource, read_verified_file
from fmnist_search.data.images import LabelledImages
from fmnist_search.data.loading import read_training_set
from fmnist_search.recipe.datasets import FASHION_MNIST, FILE_NAMES


@pytest.fixture(scope="module")
def training_images(source: DataSource) -> LabelledImages:
    return read_training_set("fashion-mnist", source)


@pytest.fixture(scope="module")
def file_contents(source: DataSource) -> dict[str, bytes]:
    """The content of the four real files by name, uncompressed."""
    return {name: read_verified_file(FASHION_MNIST, name, source) for name in FILE_NAMES}


@pytest.fixture
def no_system_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without a dataset package."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "empty"))
    return tmp_path / "empty"


@pytest.fixture
def system_package(tmp_path: Path, file_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system whose dataset package has the training labels only, which are the smallest training file."""
    folder = tmp_path / "share" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(file_contents[TRAIN_LABELS]))
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path / 'missing'}:{tmp_path / 'share'}")
    return folder

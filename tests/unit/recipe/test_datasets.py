"""The table of datasets: each entry is complete, and only its own files are accepted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource, read_verified_file, verify_files
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, FILE_NAMES, Dataset, get_dataset
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from tests.support.synthetic_dataset import CLASS_NAMES, gzip_files, make_dataset, make_dataset_files, write_files

FILE_NAME = FILE_NAMES[0]
FILE_CONTENTS = make_dataset_files(train_count=300, test_count=50)
GZIPPED_CONTENTS = gzip_files(FILE_CONTENTS)

each_dataset = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)


def offline_source(cache: Path, folder: Path | None = None) -> DataSource:
    return DataSource(cache, folder, download=False)


def error_line(dataset: Dataset, source: DataSource, name: str = FILE_NAME) -> str:
    """Return the error line of a file that is not accepted."""
    with pytest.raises(UserError) as caught:
        read_verified_file(dataset, name, source)
    (line,) = caught.value.lines
    return line


@pytest.fixture
def registered_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset added to the table, with its files in the folder `files`."""
    write_files(tmp_path / "files", FILE_CONTENTS)
    monkeypatch.setitem(DATASETS, "made", make_dataset(FILE_CONTENTS))
    return DATASETS["made"]


# ---------------------------------------- the table


@each_dataset
def test_an_entry_is_complete_and_torchvision_downloads_the_same_files(dataset: Dataset) -> None:
    assert get_dataset(dataset.name) is dataset
    assert len(set(dataset.classes)) == 10
    assert set(dataset.digests) == set(FILE_NAMES)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in dataset.digests.values())
    if dataset.torchvision_class:
        theirs = getattr(torchvision.datasets, dataset.torchvision_class)
        assert {name for name, _ in theirs.resources} == {f"{name}.gz" for name in FILE_NAMES}
        assert dataset.download_url in theirs.mirrors


def test_all_digests_differ() -> None:
    digests = [digest for dataset in DATASETS.values() for digest in (dataset.digest, *dataset.digests.values())]
    assert len(set(digests)) == len(digests) == 5 * len(DATASETS)


@each_dataset
def test_the_digest_of_a_dataset_covers_all_four_files(dataset: Dataset) -> None:
    joined = "".join(dataset.digests[name] for name in FILE_NAMES)
    assert dataset.digest == hashlib.sha256(joined.encode()).hexdigest()


@each_dataset
def test_recipes_and_studies_select_a_dataset_by_name(dataset: Dataset) -> None:
    assert Recipe().replace({"data.dataset": dataset.name}).data.dataset == dataset.name
    study = StudyConfig.from_dict(
        {"name": "s", "budget": {"trials": 1}, "space": {"cnn": {"depth": [1]}}, "data": {"dataset": dataset.name}}
    )
    assert study.data.dataset == dataset.name


def test_an_unknown_name_is_one_line_with_the_nearest_name() -> None:
    for mistake in (lambda: get_dataset("mnits"), lambda: verify_files("mnits", offline_source(Path("nowhere")))):
        with pytest.raises(UserError, match=r"^dataset 'mnits': is not known; did you mean 'mnist'\?$"):
            mistake()
    with pytest.raises(UserError, match=rf"^data.dataset: 'emnist' .* choose from {', '.join(DATASETS)}$"):
        Data(dataset="emnist")


def test_a_new_entry_is_read_like_the_others(registered_dataset: Dataset, tmp_path: Path) -> None:
    source = offline_source(tmp_path / "cache", tmp_path / "files")
    assert verify_files("made", source) == {name: len(content) for name, content in FILE_CONTENTS.items()}
    images = load_images(Data(dataset="made", train_images=100, validation=100), source)
    assert (len(images.train), len(images.validation)) == (100, 100)
    assert (images.classes, images.digest) == (CLASS_NAMES, registered_dataset.digest)
    test = read_test_set("made", source)
    assert test.pixels.numpy().tobytes() == FILE_CONTENTS[FILE_NAMES[2]][16:]
    assert bytes(test.labels.tolist()) == FILE_CONTENTS[FILE_NAMES[3]][8:]


def test_without_a_class_of_torchvision_the_user_fetches_the_files(tmp_path: Path) -> None:
    dataset = dataclasses.replace(make_dataset(FILE_CONTENTS), torchvision_class="")
    line = error_line(dataset, DataSource(tmp_path / "cache", download=True))
    assert line.startswith(f"made: {FILE_NAME} is not in {tmp_path / 'cache' / 'made'}; fetch its four .gz files from ")
    (tmp_path / "raw").mkdir()
    assert "nor in ./raw below it" in error_line(dataset, offline_source(tmp_path / "cache", tmp_path))
    write_files(tmp_path / "raw", GZIPPED_CONTENTS)
    source = offline_source(tmp_path / "cache", tmp_path)
    assert read_verified_file(dataset, FILE_NAME, source) == FILE_CONTENTS[FILE_NAME]


# ---------------------------------------- files of other datasets


def test_files_of_another_dataset_have_another_message_than_damaged_ones(
    registered_dataset: Dataset, tmp_path: Path, source: DataSource
) -> None:
    line = error_line(DATASETS["mnist"], offline_source(tmp_path, source.cache / "fashion-mnist"))
    assert line.startswith(str(source.cache / "fashion-mnist" / FILE_NAME))
    assert "is a file of fashion-mnist, not of mnist" in line
    assert "is a file of made, not of mnist" in error_line(
        DATASETS["mnist"], offline_source(tmp_path, tmp_path / "files")
    )
    # Images in place of labels.
    (tmp_path / "files" / FILE_NAMES[1]).write_bytes(FILE_CONTENTS[FILE_NAME])
    assert "cut short" in error_line(registered_dataset, offline_source(tmp_path, tmp_path / "files"), FILE_NAMES[1])
    (tmp_path / "files" / FILE_NAME).write_bytes(FILE_CONTENTS[FILE_NAME][:-1])
    assert "cut short" in error_line(registered_dataset, offline_source(tmp_path, tmp_path / "files"))


def test_the_error_for_a_dataset_without_a_package_names_the_download(
    registered_dataset: Dataset, tmp_path: Path
) -> None:
    line = error_line(registered_dataset, offline_source(tmp_path / "cache"))
    assert f"made: {FILE_NAME} is not in {tmp_path / 'cache' / 'made'}; " in line
    assert "https://example.org/made/" in line
    assert "--data-dir" in line
    assert "apt" not in line


def test_two_datasets_do_not_mix_in_the_cache(
    registered_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_dataset_files(train_count=300, test_count=50, seed=1)
    monkeypatch.setitem(DATASETS, "other", make_dataset(other, "other"))
    for name, files in (("made", FILE_CONTENTS), ("other", other)):
        write_files(tmp_path / "cache" / name, files)
    for name, files in (("made", FILE_CONTENTS), ("other", other)):
        assert read_verified_file(DATASETS[name], FILE_NAME, offline_source(tmp_path / "cache")) == files[FILE_NAME]


# ---------------------------------------- compressed datasets


@pytest.fixture
def gzipped_dataset(tmp_path: Path) -> Dataset:
    """A dataset whose digests are those of the `.gz` files, not of their content."""
    write_files(tmp_path / "files", GZIPPED_CONTENTS)
    return make_dataset(GZIPPED_CONTENTS)


def test_published_files_are_verified_compressed_and_read_uncompressed(
    gzipped_dataset: Dataset, tmp_path: Path
) -> None:
    assert gzipped_dataset.compressed
    for name in FILE_NAMES:
        assert (
            read_verified_file(gzipped_dataset, name, offline_source(tmp_path / "cache", tmp_path / "files"))
            == FILE_CONTENTS[name]
        )


def test_recompressed_or_uncompressed_files_cannot_be_verified(gzipped_dataset: Dataset, tmp_path: Path) -> None:
    unpacked = write_files(tmp_path / "unpacked", FILE_CONTENTS)
    assert f"no {FILE_NAME}.gz (as it was published) there" in error_line(
        gzipped_dataset, offline_source(tmp_path, unpacked)
    )
    again = write_files(tmp_path / "again", gzip_files(FILE_CONTENTS, level=1))
    assert f"{again / FILE_NAME}.gz: cut short, altered or of another" in error_line(
        gzipped_dataset, offline_source(tmp_path, again)
    )


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def download_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make torchvision download from the folder `files`."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "files"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        sums = [
            (name, hashlib.md5(content, usedforsecurity=False).hexdigest())
            for name, content in GZIPPED_CONTENTS.items()
        ]
        monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{serving.server_port}/"])
        monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", sums)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield
        serving.shutdown()


def test_downloaded_files_are_cached_as_published(
    gzipped_dataset: Dataset, download_server: None, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert read_verified_file(gzipped_dataset, FILE_NAME, DataSource(cache)) == FILE_CONTENTS[FILE_NAME]
    assert {file.name: file.read_bytes() for file in (cache / "made").iterdir()} == GZIPPED_CONTENTS
    assert read_verified_file(gzipped_dataset, FILE_NAME, offline_source(cache)) == FILE_CONTENTS[FILE_NAME]
    cached = cache / "made" / f"{FILE_NAME}.gz"
    cached.write_bytes(cached.read_bytes()[:-1])
    assert "is not in" in error_line(gzipped_dataset, offline_source(cache))
    assert read_verified_file(gzipped_dataset, FILE_NAME, DataSource(cache)) == FILE_CONTENTS[FILE_NAME]
    assert cached.read_bytes() == GZIPPED_CONTENTS[cached.name]


# ---------------------------------------- model names


@pytest.mark.parametrize(
    ("dataset", "given", "expected"),
    [
        ("fashion-mnist", {}, "fmnist-search"),
        ("mnist", {}, "fmnist-search-mnist"),
        ("mnist", {"recipes": 2}, "fmnist-search-mnist"),
        ("kmnist", {"model_name": "fmnist-search"}, "fmnist-search"),
        ("kmnist", {"model_name": "mine"}, "mine"),
    ],
)
def test_each_dataset_has_its_own_registered_model_unless_the_study_names_one(
    dataset: str, given: dict[str, object], expected: str
) -> None:
    study = StudyConfig.from_dict(
        {
            "name": "s",
            "budget": {"trials": 1},
            "space": {"cnn": {"depth": [1]}},
            "data": {"dataset": dataset},
            "finalists": given,
        }
    )
    assert study.finalists.model_name == expected
    assert StudyConfig.from_dict(study.model_dump()) == study

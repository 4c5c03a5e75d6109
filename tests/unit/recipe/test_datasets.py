"""The table of datasets: what every entry promises, and that nothing but its own files is taken for one."""

from __future__ import annotations

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
    """The one line that says why a file is not taken."""
    with pytest.raises(UserError) as caught:
        read_verified_file(dataset, name, source)
    (line,) = caught.value.lines
    return line


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset that the test has put into the table, its files in the folder `stored_files`."""
    write_files(tmp_path / "files", FILE_CONTENTS)
    monkeypatch.setitem(DATASETS, "made", make_dataset(FILE_CONTENTS))
    return DATASETS["made"]


# ---------------------------------------------------------------------------------------- the table


@each_dataset
def test_an_entry_is_whole_and_torchvision_downloads_the_same_files(dataset: Dataset) -> None:
    assert get_dataset(dataset.name) is dataset
    assert len(set(dataset.classes)) == 10
    assert set(dataset.digests) == set(FILE_NAMES)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in dataset.digests.values())
    theirs = getattr(torchvision.datasets, dataset.torchvision_class)
    assert {name for name, _ in theirs.resources} == {f"{name}.gz" for name in FILE_NAMES}
    assert dataset.download_url in theirs.mirrors


def test_no_digest_is_of_two_files() -> None:
    digests = [digest for dataset in DATASETS.values() for digest in (dataset.digest, *dataset.digests.values())]
    assert len(set(digests)) == len(digests) == 5 * len(DATASETS)


@each_dataset
def test_recipes_and_studies_choose_it_by_name(dataset: Dataset) -> None:
    assert Recipe().replace({"data.dataset": dataset.name}).data.dataset == dataset.name
    study = StudyConfig.from_dict(
        {"name": "s", "budget": {"trials": 1}, "space": {"cnn": {"depth": [1]}}, "data": {"dataset": dataset.name}}
    )
    assert study.data.dataset == dataset.name


def test_a_name_that_is_none_of_them_is_one_line_with_the_nearest() -> None:
    for mistake in (lambda: get_dataset("mnits"), lambda: verify_files("mnits", offline_source(Path("nowhere")))):
        with pytest.raises(UserError, match=r"^dataset 'mnits': is not known; did you mean 'mnist'\?$"):
            mistake()
    with pytest.raises(UserError, match=r"^data.dataset: 'emnist' .* choose from fashion-mnist, mnist, kmnist$"):
        Data(dataset="emnist")


def test_a_new_entry_is_a_dataset_that_is_read_like_the_others(made: Dataset, tmp_path: Path) -> None:
    source = offline_source(tmp_path / "cache", tmp_path / "files")
    assert verify_files("made", source) == {name: len(content) for name, content in FILE_CONTENTS.items()}
    images = load_images(Data(dataset="made", train_images=100, validation=100), source)
    assert (len(images.train), len(images.validation)) == (100, 100)
    assert (images.classes, images.digest) == (CLASS_NAMES, made.digest)
    test = read_test_set("made", source)
    assert test.pixels.numpy().tobytes() == FILE_CONTENTS[FILE_NAMES[2]][16:]
    assert bytes(test.labels.tolist()) == FILE_CONTENTS[FILE_NAMES[3]][8:]


# ------------------------------------------------------------------------------ what is not its own


def test_files_of_another_dataset_are_told_from_damaged_ones(made: Dataset, tmp_path: Path, source: DataSource) -> None:
    line = error_line(DATASETS["mnist"], offline_source(tmp_path, source.cache / "fashion-mnist"))
    assert line.startswith(str(source.cache / "fashion-mnist" / FILE_NAME))
    assert "is a file of fashion-mnist, not of mnist" in line
    assert "is a file of made, not of mnist" in error_line(
        DATASETS["mnist"], offline_source(tmp_path, tmp_path / "files")
    )
    # Images in the place of labels.
    (tmp_path / "files" / FILE_NAMES[1]).write_bytes(FILE_CONTENTS[FILE_NAME])
    assert "cut short" in error_line(made, offline_source(tmp_path, tmp_path / "files"), FILE_NAMES[1])
    (tmp_path / "files" / FILE_NAME).write_bytes(FILE_CONTENTS[FILE_NAME][:-1])
    assert "cut short" in error_line(made, offline_source(tmp_path, tmp_path / "files"))


def test_a_dataset_without_a_package_says_where_its_files_are_to_be_had(made: Dataset, tmp_path: Path) -> None:
    line = error_line(made, offline_source(tmp_path / "cache"))
    assert f"made: {FILE_NAME} is not in {tmp_path / 'cache' / 'made'}; " in line
    assert "https://example.org/made/" in line
    assert "--data-dir" in line
    assert "apt" not in line


def test_two_datasets_lie_side_by_side_in_one_folder_and_in_the_cache(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_dataset_files(train_count=300, test_count=50, seed=1)
    monkeypatch.setitem(DATASETS, "other", make_dataset(other, "other"))
    for name, files in (("made", FILE_CONTENTS), ("other", other)):
        write_files(tmp_path / "cache" / name, files)
    for name, files in (("made", FILE_CONTENTS), ("other", other)):
        assert read_verified_file(DATASETS[name], FILE_NAME, offline_source(tmp_path / "cache")) == files[FILE_NAME]


# ------------------------------------------------------------------- known by its published files alone


@pytest.fixture
def published(tmp_path: Path) -> Dataset:
    """A dataset of which the digests of the `.gz` files are known, and not of what is in them."""
    write_files(tmp_path / "files", GZIPPED_CONTENTS)
    return make_dataset(GZIPPED_CONTENTS)


def test_published_files_are_verified_as_they_are_and_read_unpacked(published: Dataset, tmp_path: Path) -> None:
    assert published.compressed
    for name in FILE_NAMES:
        assert (
            read_verified_file(published, name, offline_source(tmp_path / "cache", tmp_path / "files"))
            == FILE_CONTENTS[name]
        )


def test_what_was_packed_or_unpacked_by_others_cannot_be_verified(published: Dataset, tmp_path: Path) -> None:
    unpacked = write_files(tmp_path / "unpacked", FILE_CONTENTS)
    assert f"no {FILE_NAME}.gz (as it was published) there" in error_line(published, offline_source(tmp_path, unpacked))
    again = write_files(tmp_path / "again", gzip_files(FILE_CONTENTS, level=1))
    assert f"{again / FILE_NAME}.gz: cut short, altered or of another" in error_line(
        published, offline_source(tmp_path, again)
    )


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes torchvision's own download come to the folder `stored_files`."""
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


def test_downloaded_published_files_stay_verifiable_in_the_cache(
    published: Dataset, server: None, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert read_verified_file(published, FILE_NAME, DataSource(cache)) == FILE_CONTENTS[FILE_NAME]
    assert {file.name: file.read_bytes() for file in (cache / "made").iterdir()} == GZIPPED_CONTENTS
    assert read_verified_file(published, FILE_NAME, offline_source(cache)) == FILE_CONTENTS[FILE_NAME]
    cached = cache / "made" / f"{FILE_NAME}.gz"
    cached.write_bytes(cached.read_bytes()[:-1])
    assert "is not in" in error_line(published, offline_source(cache))
    assert read_verified_file(published, FILE_NAME, DataSource(cache)) == FILE_CONTENTS[FILE_NAME]
    assert cached.read_bytes() == GZIPPED_CONTENTS[cached.name]


# --------------------------------------------------------------------------------- its models' name


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
def test_models_of_a_dataset_are_registered_apart_unless_the_study_names_them(
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

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
from fmnist_search.data.loading import Source, find, prepare, read_test_set, verify
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, FILES, Dataset, dataset_named
from fmnist_search.recipe.recipe import Data, Recipe
from tests.support.synthetic_dataset import CLASSES, dataset_of, made_files, packed, write

FILE = FILES[0]
CONTENTS = made_files(images=300, tests=50)
PUBLISHED = packed(CONTENTS)

every_dataset = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)


def offline(cache: Path, folder: Path | None = None) -> Source:
    return Source(cache, folder, download=False)


def refused(dataset: Dataset, source: Source, name: str = FILE) -> str:
    """The one line that says why a file is not taken."""
    with pytest.raises(UserError) as caught:
        find(dataset, name, source)
    (line,) = caught.value.lines
    return line


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset that the test has put into the table, its files in the folder `files`."""
    write(tmp_path / "files", CONTENTS)
    monkeypatch.setitem(DATASETS, "made", dataset_of(CONTENTS))
    return DATASETS["made"]


# ---------------------------------------------------------------------------------------- the table


@every_dataset
def test_an_entry_is_whole_and_torchvision_downloads_the_same_files(dataset: Dataset) -> None:
    assert dataset_named(dataset.name) is dataset
    assert len(set(dataset.classes)) == 10
    assert set(dataset.digests) == set(FILES)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in dataset.digests.values())
    theirs = getattr(torchvision.datasets, dataset.torchvision_class)
    assert {name for name, _ in theirs.resources} == {f"{name}.gz" for name in FILES}
    assert dataset.download in theirs.mirrors


def test_no_digest_is_of_two_files() -> None:
    digests = [digest for dataset in DATASETS.values() for digest in (dataset.digest, *dataset.digests.values())]
    assert len(set(digests)) == len(digests) == 5 * len(DATASETS)


@every_dataset
def test_recipes_and_studies_choose_it_by_name(dataset: Dataset) -> None:
    assert Recipe().replace({"data.dataset": dataset.name}).data.dataset == dataset.name
    study = StudyConfig.from_dict(
        {"name": "s", "budget": {"trials": 1}, "space": {"cnn": {"depth": [1]}}, "data": {"dataset": dataset.name}}
    )
    assert study.data.dataset == dataset.name


def test_a_name_that_is_none_of_them_is_one_line_with_the_nearest() -> None:
    for mistake in (lambda: dataset_named("mnits"), lambda: verify("mnits", offline(Path("nowhere")))):
        with pytest.raises(UserError, match=r"^dataset 'mnits': is not known; did you mean 'mnist'\?$"):
            mistake()
    with pytest.raises(UserError, match=r"^data.dataset: 'emnist' .* choose from fashion-mnist, mnist, kmnist$"):
        Data(dataset="emnist")


def test_a_new_entry_is_a_dataset_that_is_read_like_the_others(made: Dataset, tmp_path: Path) -> None:
    source = offline(tmp_path / "cache", tmp_path / "files")
    assert verify("made", source) == {name: len(content) for name, content in CONTENTS.items()}
    images = prepare(Data(dataset="made", train_images=100, validation=100), source)
    assert (len(images.train), len(images.validation)) == (100, 100)
    assert (images.classes, images.digest) == (CLASSES, made.digest)
    test = read_test_set("made", source)
    assert test.pixels.numpy().tobytes() == CONTENTS[FILES[2]][16:]
    assert bytes(test.labels.tolist()) == CONTENTS[FILES[3]][8:]


# ------------------------------------------------------------------------------ what is not its own


def test_files_of_another_dataset_are_told_from_damaged_ones(made: Dataset, tmp_path: Path, source: Source) -> None:
    line = refused(DATASETS["mnist"], offline(tmp_path, source.cache / "fashion-mnist"))
    assert line.startswith(str(source.cache / "fashion-mnist" / FILE))
    assert "is a file of fashion-mnist, not of mnist" in line
    assert "is a file of made, not of mnist" in refused(DATASETS["mnist"], offline(tmp_path, tmp_path / "files"))
    # Images in the place of labels.
    (tmp_path / "files" / FILES[1]).write_bytes(CONTENTS[FILE])
    assert "cut short" in refused(made, offline(tmp_path, tmp_path / "files"), FILES[1])
    (tmp_path / "files" / FILE).write_bytes(CONTENTS[FILE][:-1])
    assert "cut short" in refused(made, offline(tmp_path, tmp_path / "files"))


def test_a_dataset_without_a_package_says_where_its_files_are_to_be_had(made: Dataset, tmp_path: Path) -> None:
    line = refused(made, offline(tmp_path / "cache"))
    assert f"made: {FILE} is not in {tmp_path / 'cache' / 'made'}; " in line
    assert "https://example.org/made/" in line
    assert "--data-dir" in line
    assert "apt" not in line


def test_two_datasets_lie_side_by_side_in_one_folder_and_in_the_cache(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made_files(images=300, tests=50, seed=1)
    monkeypatch.setitem(DATASETS, "other", dataset_of(other, "other"))
    for name, files in (("made", CONTENTS), ("other", other)):
        write(tmp_path / "cache" / name, files)
    for name, files in (("made", CONTENTS), ("other", other)):
        assert find(DATASETS[name], FILE, offline(tmp_path / "cache")) == files[FILE]


# ------------------------------------------------------------------- known by its published files alone


@pytest.fixture
def published(tmp_path: Path) -> Dataset:
    """A dataset of which the digests of the `.gz` files are known, and not of what is in them."""
    write(tmp_path / "files", PUBLISHED)
    return dataset_of(PUBLISHED)


def test_published_files_are_verified_as_they_are_and_read_unpacked(published: Dataset, tmp_path: Path) -> None:
    assert published.packed
    for name in FILES:
        assert find(published, name, offline(tmp_path / "cache", tmp_path / "files")) == CONTENTS[name]


def test_what_was_packed_or_unpacked_by_others_cannot_be_verified(published: Dataset, tmp_path: Path) -> None:
    unpacked = write(tmp_path / "unpacked", CONTENTS)
    assert f"no {FILE}.gz (as it was published) there" in refused(published, offline(tmp_path, unpacked))
    again = write(tmp_path / "again", packed(CONTENTS, level=1))
    assert f"{again / FILE}.gz: cut short, altered or of another" in refused(published, offline(tmp_path, again))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes torchvision's own download come to the folder `files`."""
    handler = functools.partial(Quiet, directory=str(tmp_path / "files"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        sums = [(name, hashlib.md5(content, usedforsecurity=False).hexdigest()) for name, content in PUBLISHED.items()]
        monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{serving.server_port}/"])
        monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", sums)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield
        serving.shutdown()


def test_downloaded_published_files_stay_verifiable_in_the_cache(
    published: Dataset, server: None, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert find(published, FILE, Source(cache)) == CONTENTS[FILE]
    assert {file.name: file.read_bytes() for file in (cache / "made").iterdir()} == PUBLISHED
    assert find(published, FILE, offline(cache)) == CONTENTS[FILE]
    cached = cache / "made" / f"{FILE}.gz"
    cached.write_bytes(cached.read_bytes()[:-1])
    assert "is not in" in refused(published, offline(cache))
    assert find(published, FILE, Source(cache)) == CONTENTS[FILE]
    assert cached.read_bytes() == PUBLISHED[cached.name]


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

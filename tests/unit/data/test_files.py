"""The images: whole or not at all, split by a rule that a reader can follow, described by what is trained on."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import logging
import multiprocessing
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import FashionMNIST

from fmnist_search.data.files import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS, DataSource, read_verified_file
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import load_images, read_test_set, read_training_set
from fmnist_search.data.split import split, stratified_sample
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, FILE_NAMES
from fmnist_search.recipe.groups import Data

FASHION_MNIST = DATASETS["fashion-mnist"]
SYSTEM_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_SPLIT_DIGEST = "a5d87e4a195ff65558ca9144bdb7e538"

Indices = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def pool(source: DataSource) -> LabelledImages:
    return read_training_set("fashion-mnist", source)


@pytest.fixture(scope="module")
def contents(source: DataSource) -> dict[str, bytes]:
    """The four real files, unpacked."""
    return {name: read_verified_file(FASHION_MNIST, name, source) for name in FILE_NAMES}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without a dataset package."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "empty"))
    return tmp_path / "empty"


@pytest.fixture
def packaged(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with a dataset package of the training labels: small, and enough to see the rules."""
    place = tmp_path / "share" / "datasets" / "fashion-mnist"
    place.mkdir(parents=True)
    (place / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(contents[TRAIN_LABELS]))
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path / 'missing'}:{tmp_path / 'share'}")
    return place


def offline_source(cache: Path, folder: Path | None = None) -> DataSource:
    return DataSource(cache, folder, download=False)


def read_labels(source: DataSource) -> bytes:
    return read_verified_file(FASHION_MNIST, TRAIN_LABELS, source)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------- what is in them


def test_the_pool_holds_sixty_thousand_images_six_thousand_a_class(pool: LabelledImages) -> None:
    assert (pool.pixels.shape, pool.pixels.dtype) == ((60_000, 28, 28), torch.uint8)
    assert (pool.labels.shape, pool.labels.dtype) == ((60_000,), torch.int64)
    assert torch.bincount(pool.labels).tolist() == [6_000] * 10


def test_the_pool_has_the_mean_and_deviation_that_the_world_knows(pool: LabelledImages) -> None:
    as_float = pool.pixels.float() / 255
    assert as_float.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert as_float.std().item() == pytest.approx(0.3530, abs=1e-4)


def test_the_test_set_holds_ten_thousand_images_a_thousand_a_class(source: DataSource) -> None:
    found = read_test_set("fashion-mnist", source)
    assert (found.pixels.shape, found.pixels.dtype) == ((10_000, 28, 28), torch.uint8)
    assert torch.bincount(found.labels).tolist() == [1_000] * 10


def nearest_centroid_accuracy(train: LabelledImages, test: LabelledImages) -> float:
    """Accuracy of the plainest classifier there is: the nearest of the ten mean images."""
    means = torch.stack([train.pixels[train.labels == label].double().mean(0).flatten() for label in range(10)])
    guesses = torch.cdist(test.pixels.double().flatten(1), means).argmin(1)
    return (guesses == test.labels).double().mean().item()


def test_labels_belong_to_their_images(images: Images, source: DataSource) -> None:
    # Images and labels out of step would give one in ten.
    assert nearest_centroid_accuracy(images.train, images.validation) > 0.6
    assert nearest_centroid_accuracy(images.validation, images.train) > 0.6
    assert nearest_centroid_accuracy(images.train, read_test_set("fashion-mnist", source)) > 0.6


def test_the_digest_of_the_dataset_covers_all_four_files() -> None:
    assert set(FASHION_MNIST.digests) == set(FILE_NAMES)
    assert (
        FASHION_MNIST.digest
        == hashlib.sha256("".join(FASHION_MNIST.digests[name] for name in FILE_NAMES).encode()).hexdigest()
    )
    assert len(FASHION_MNIST.classes) == 10


# ------------------------------------------------------------------------------------- the split


def quotas_by_largest_remainder(sizes: list[int], count: int) -> list[int]:
    """The rule in exact fractions: floors first, the rest by largest remainder, ties to the lower class."""
    shares = [Fraction(count * size, max(sum(sizes), 1)) for size in sizes]
    quotas = [int(share) for share in shares]
    neediest = sorted(range(len(sizes)), key=lambda label: (quotas[label] - shares[label], label))
    for label in neediest[: count - sum(quotas)]:
        quotas[label] += 1
    return quotas


class_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=200)
@given(class_sizes, st.data())
def test_a_stratified_draw_gives_each_class_its_quota(sizes: list[int], data: st.DataObject) -> None:
    sizes[-1] = max(sizes[-1], 1)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(data.draw(st.integers(0, 99))).shuffle(labels)
    count = data.draw(st.integers(0, len(labels)))
    drawn = stratified_sample(labels, np.arange(len(labels)), count, np.random.default_rng(0))
    assert len(drawn) == count
    assert np.bincount(labels[drawn], minlength=len(sizes)).tolist() == quotas_by_largest_remainder(sizes, count)
    assert (np.diff(drawn) > 0).all(), "the indices are not sorted, or one is drawn twice"


@given(st.integers(0, 30), st.integers(0, 5))
def test_a_stratified_draw_takes_only_candidates_and_depends_only_on_the_generator(count: int, seed: int) -> None:
    labels = np.tile(np.arange(3), 20)
    candidates = np.arange(0, 60, 2)

    def draw() -> Indices:
        return stratified_sample(labels, candidates, count, np.random.default_rng(seed))

    assert set(draw()) <= set(candidates)
    assert (draw() == draw()).all()


def test_every_image_of_a_class_is_as_likely_to_be_drawn() -> None:
    labels = np.repeat(np.arange(2), [10, 20])
    counts: Counter[int] = Counter()
    for seed in range(600):
        counts.update(stratified_sample(labels, np.arange(30), 15, np.random.default_rng(seed)).tolist())
    assert set(counts) == set(range(30))
    assert all(240 < count < 360 for count in counts.values())


@settings(max_examples=25)
@given(st.integers(0, 59_900), st.data())
def test_training_and_validation_share_no_image_and_leave_none_out(
    pool: LabelledImages, validation: int, data: st.DataObject
) -> None:
    count = data.draw(st.just(0) | st.integers(100, 60_000 - validation))
    wanted = Data(validation=validation, train_images=count, seed=data.draw(st.integers(0, 2**31)))
    labels = pool.labels.numpy()
    training, held_back = split(labels, wanted)
    assert (len(training), len(held_back)) == (wanted.training_count, validation)
    assert (training.dtype, held_back.dtype) == (torch.int64, torch.int64)
    assert np.intersect1d(training, held_back).size == 0
    assert (training.diff() > 0).all()
    assert (held_back.diff() > 0).all()
    again = split(labels, wanted)
    assert torch.equal(training, again[0])
    assert torch.equal(held_back, again[1])
    assert torch.bincount(pool.labels[held_back], minlength=10).tolist() == quotas_by_largest_remainder(
        [6_000] * 10, validation
    )
    left = torch.bincount(pool.labels, minlength=10) - torch.bincount(pool.labels[held_back], minlength=10)
    assert torch.bincount(pool.labels[training], minlength=10).tolist() == quotas_by_largest_remainder(
        left.tolist(), wanted.training_count
    )


def test_the_default_split_is_49152_to_train_on_and_10848_to_validate(pool: LabelledImages) -> None:
    training, validation = split(pool.labels.numpy(), Data())
    assert (len(training), len(validation)) == (49_152, 10_848)
    assert len(training) == 3 * 2**14


@pytest.mark.parametrize(("share", "count"), [(0.2, 12_000), (0.5, 30_000), (0, 0)])
def test_a_share_of_validation_images_is_one_of_all_sixty_thousand(
    share: float, count: int, pool: LabelledImages
) -> None:
    training, validation = split(pool.labels.numpy(), Data(validation=share))  # type: ignore[arg-type]
    assert (len(training), len(validation)) == (60_000 - count, count)


def test_a_slice_of_the_training_images_leaves_validation_whole(pool: LabelledImages) -> None:
    labels = pool.labels.numpy()
    training, validation = split(labels, Data())
    sliced, same = split(labels, Data(train_images=1_003))
    assert torch.equal(same, validation)
    assert set(sliced.tolist()) <= set(training.tolist())


def test_another_seed_draws_other_images(pool: LabelledImages) -> None:
    labels = pool.labels.numpy()
    assert not torch.equal(split(labels, Data())[1], split(labels, Data(seed=1))[1])


def test_the_default_split_is_the_one_it_has_always_been(source: DataSource) -> None:
    # A new digest means that no accuracy measured before compares with one measured after.
    assert load_images(Data(train_images=100), source).split_digest == DEFAULT_SPLIT_DIGEST


def test_the_split_digest_names_the_validation_images_and_nothing_else(source: DataSource) -> None:
    assert load_images(Data(train_images=200), source).split_digest == DEFAULT_SPLIT_DIGEST
    assert load_images(Data(train_images=100, seed=1), source).split_digest != DEFAULT_SPLIT_DIGEST
    assert load_images(Data(train_images=100, validation=10_849), source).split_digest != DEFAULT_SPLIT_DIGEST


def test_prepared_images_are_those_of_the_split(pool: LabelledImages, source: DataSource) -> None:
    wanted = Data(train_images=500, validation=700, seed=3)
    found = load_images(wanted, source)
    for part, indices in zip((found.train, found.validation), split(pool.labels.numpy(), wanted), strict=True):
        assert torch.equal(part.pixels, pool.pixels[indices])
        assert torch.equal(part.labels, pool.labels[indices])
    assert (found.digest, found.classes) == (FASHION_MNIST.digest, FASHION_MNIST.classes)


@given(st.integers(100, 300), st.integers(0, 1_000))
@settings(max_examples=4)
def test_mean_and_deviation_come_from_the_images_that_are_trained_on(source: DataSource, count: int, seed: int) -> None:
    found = load_images(Data(train_images=count, seed=seed), source)
    pixels = found.train.pixels.numpy().astype(np.float64)
    assert found.mean == pytest.approx(pixels.mean())
    assert found.std == pytest.approx(pixels.std())


def test_no_validation_images_are_an_empty_tensor(source: DataSource) -> None:
    found = load_images(Data(train_images=100, validation=0), source)
    assert (len(found.train), len(found.validation)) == (100, 0)


# ------------------------------------------------------------------------------------- the cache


def test_the_first_use_leaves_whole_files_in_the_cache_and_the_next_needs_nothing_else(
    tmp_path: Path, packaged: Path, contents: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    assert not cache.exists()
    assert read_labels(offline_source(cache)) == contents[TRAIN_LABELS]
    assert read_tree(cache) == {f"fashion-mnist/{TRAIN_LABELS}": contents[TRAIN_LABELS]}
    (packaged / f"{TRAIN_LABELS}.gz").unlink()
    assert read_labels(offline_source(cache)) == contents[TRAIN_LABELS]


def flip_bit(content: bytes) -> bytes:
    return content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:]


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "header alone": lambda content: content[:8],
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "one bit flipped": flip_bit,
}
each_corruption = pytest.mark.parametrize("damage", CORRUPTIONS.values(), ids=CORRUPTIONS)


@each_corruption
def test_a_damaged_file_in_the_cache_is_replaced_by_a_whole_one(
    damage: Callable[[bytes], bytes], tmp_path: Path, packaged: Path, contents: dict[str, bytes]
) -> None:
    cached = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    cached.parent.mkdir(parents=True)
    cached.write_bytes(damage(contents[TRAIN_LABELS]))
    assert read_labels(offline_source(tmp_path / "cache")) == contents[TRAIN_LABELS]
    assert cached.read_bytes() == contents[TRAIN_LABELS]


@each_corruption
def test_a_damaged_file_in_the_cache_is_never_used_even_where_there_is_no_other(
    damage: Callable[[bytes], bytes], tmp_path: Path, nowhere: Path, contents: dict[str, bytes]
) -> None:
    cached = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    cached.parent.mkdir(parents=True)
    cached.write_bytes(damage(contents[TRAIN_LABELS]))
    with pytest.raises(UserError, match=FASHION_MNIST.system_package):
        read_labels(offline_source(tmp_path / "cache"))


def test_a_damaged_file_in_the_systems_package_is_passed_over(
    tmp_path: Path, packaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = packaged / f"{TRAIN_LABELS}.gz"
    package.write_bytes(package.read_bytes()[:-100])
    with pytest.raises(UserError, match=FASHION_MNIST.system_package):
        read_labels(offline_source(tmp_path / "cache"))
    assert str(package) in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, packaged: Path, contents: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    # A file where a folder should be stops root too, whom permissions do not.
    (tmp_path / "file").write_bytes(b"")
    assert read_labels(offline_source(tmp_path / "file" / "cache")) == contents[TRAIN_LABELS]
    assert "cannot be written" in caplog.text


def test_a_cache_that_cannot_take_a_file_keeps_no_scraps_of_it(
    tmp_path: Path, packaged: Path, contents: dict[str, bytes]
) -> None:
    in_the_way = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    in_the_way.mkdir(parents=True)
    assert read_labels(offline_source(tmp_path / "cache")) == contents[TRAIN_LABELS]
    assert read_tree(tmp_path / "cache") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_permission_to_write_costs_a_warning_only(
    tmp_path: Path, packaged: Path, contents: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    assert read_labels(offline_source(cache)) == contents[TRAIN_LABELS]
    assert read_tree(cache) == {}


def test_processes_that_start_at_once_all_get_whole_files(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "share" / "datasets" / "fashion-mnist"
    place.mkdir(parents=True)
    # The larger a file, the longer a careless writer would show half of it.
    (place / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(contents[TEST_IMAGES], 1))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fmnist_search.data.loading"])
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(3, mp_context=processes) as executor:
        rivals = [
            executor.submit(read_verified_file, FASHION_MNIST, TEST_IMAGES, offline_source(cache)) for _ in range(6)
        ]
        assert all(rival.result() == contents[TEST_IMAGES] for rival in rivals)
    assert read_tree(cache) == {f"fashion-mnist/{TEST_IMAGES}": contents[TEST_IMAGES]}


def test_readers_never_see_half_a_file(
    tmp_path: Path, packaged: Path, contents: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    cached = cache / "fashion-mnist" / TRAIN_LABELS
    wrong: list[int] = []

    def use_and_forget() -> None:
        for _ in range(25):
            if read_labels(offline_source(cache)) != contents[TRAIN_LABELS]:
                wrong.append(1)
            cached.unlink(missing_ok=True)

    with caplog.at_level(logging.WARNING):
        rivals = [threading.Thread(target=use_and_forget) for _ in range(4)]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
    # The rivals delete what others are about to open; what they do open must be whole.
    assert (wrong, [message for message in caplog.messages if "No such file" not in message]) == ([], [])


# -------------------------------------------------------------------------- a folder of the user's


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_a_named_folder_may_have_torchvisions_layout_or_just_the_files(
    below: str, packed: bool, tmp_path: Path, nowhere: Path, contents: dict[str, bytes]
) -> None:
    place = tmp_path / "mine" / below
    place.mkdir(parents=True)
    content = contents[TRAIN_LABELS]
    file = place / (f"{TRAIN_LABELS}.gz" if packed else TRAIN_LABELS)
    file.write_bytes(gzip.compress(content) if packed else content)
    before = read_tree(tmp_path)
    assert read_labels(offline_source(tmp_path / "cache", tmp_path / "mine")) == content
    assert read_tree(tmp_path) == before, "a folder of the user's is only read, and needs no cache"


@each_corruption
def test_a_damaged_file_in_a_named_folder_is_an_error_that_names_it(
    damage: Callable[[bytes], bytes], tmp_path: Path, contents: dict[str, bytes], source: DataSource
) -> None:
    file = tmp_path / TRAIN_LABELS
    file.write_bytes(damage(contents[TRAIN_LABELS]))
    with pytest.raises(UserError) as caught:
        # The cache of `source` has a whole one, which must not hide that the user's is damaged.
        read_labels(DataSource(source.cache, tmp_path))
    (line,) = caught.value.lines
    assert line.startswith(f"{file}: ")


def test_a_packed_file_with_something_behind_it_is_an_error_that_names_it(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    file = tmp_path / f"{TRAIN_LABELS}.gz"
    file.write_bytes(gzip.compress(contents[TRAIN_LABELS]) + b"and so on")
    with pytest.raises(UserError) as caught:
        read_labels(offline_source(tmp_path / "cache", tmp_path))
    assert str(file) in str(caught.value)


@functools.cache
def gzip_cached(content: bytes) -> bytes:
    return gzip.compress(content)


@settings(max_examples=40)
@given(data=st.data())
def test_a_packed_file_cut_or_altered_anywhere_is_an_error_or_the_whole_content(
    data: st.DataObject, contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = gzip_cached(contents[TRAIN_LABELS])
    place = data.draw(st.integers(0, 30) | st.integers(0, len(whole) - 1))
    damaged = whole[:place]
    if data.draw(st.booleans()):
        damaged += bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    folder = tmp_path_factory.mktemp("folder")
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(damaged)
    try:
        found = read_labels(offline_source(folder / "cache", folder))
    except UserError as error:
        found = str(error).encode()
    # A header's date, for one, may change without harm.
    assert found == contents[TRAIN_LABELS] or found.startswith(str(folder).encode())


def test_a_named_folder_without_the_files_is_an_error_that_names_it(tmp_path: Path, source: DataSource) -> None:
    with pytest.raises(UserError) as caught:
        read_labels(DataSource(source.cache, tmp_path / "mine"))
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path / 'mine'}: ")
    assert TRAIN_LABELS in line


# -------------------------------------------------------------------------------------- no source


def test_without_any_source_the_error_names_the_package_to_install(tmp_path: Path, nowhere: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_images(Data(), offline_source(tmp_path / "cache"))
    (line,) = caught.value.lines
    assert f"apt-get install {FASHION_MNIST.system_package}" in line
    assert str(tmp_path / "cache") in line
    assert "downloaded" not in line


@pytest.mark.skipif(not SYSTEM_PACKAGE.is_dir(), reason="needs the system's dataset package")
def test_an_empty_list_of_data_folders_means_the_usual_ones(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So says the XDG base directory specification of "not set or empty".
    monkeypatch.setenv("XDG_DATA_DIRS", "")
    monkeypatch.chdir(tmp_path)
    assert read_labels(offline_source(tmp_path / "cache")) == contents[TRAIN_LABELS]


# ------------------------------------------------------------------------------------ the download


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> Path:
    """The files as a server would hold them."""
    folder = tmp_path_factory.mktemp("mirror")
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    return folder


StartServer = Callable[[Path], None]


@pytest.fixture
def serve(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartServer]:
    """Makes torchvision's own download come to a server on this machine, for files below a folder."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        redirect_download(server.server_address[1], monkeypatch)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def redirect_download(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def set_expected_checksums(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torchvision expect the checksums of these files: packed here, they differ from the originals."""
    sums = [
        (f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes(), usedforsecurity=False).hexdigest())
        for name in FILE_NAMES
    ]
    monkeypatch.setattr(FashionMNIST, "resources", sums)


def mirror_with_replaced_file(mirror: Path, folder: Path, name: str, content: bytes) -> Path:
    """The mirror with one file replaced."""
    folder.mkdir()
    for file in mirror.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / f"{name}.gz").unlink()
    (folder / f"{name}.gz").write_bytes(content)
    return folder


def test_what_is_not_on_the_machine_is_downloaded_once_and_cached(
    serve: StartServer, mirror: Path, tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(mirror)
    set_expected_checksums(mirror, monkeypatch)
    cache = tmp_path / "cache"
    assert read_verified_file(FASHION_MNIST, TRAIN_IMAGES, DataSource(cache)) == contents[TRAIN_IMAGES]
    assert read_tree(cache) == {f"fashion-mnist/{name}": content for name, content in contents.items()}
    assert read_labels(offline_source(cache)) == contents[TRAIN_LABELS]


def test_a_download_that_is_cut_short_is_not_used(
    serve: StartServer, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = (mirror / f"{TRAIN_IMAGES}.gz").read_bytes()[:100_000]
    serve(mirror_with_replaced_file(mirror, tmp_path / "served", TRAIN_IMAGES, cut))
    set_expected_checksums(mirror, monkeypatch)
    with pytest.raises(UserError) as caught:
        read_labels(DataSource(tmp_path / "cache"))
    assert f"apt-get install {FASHION_MNIST.system_package}" in str(caught.value)
    assert "could not be downloaded" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_downloaded_file_that_torchvision_believes_but_is_altered_is_not_used(
    serve: StartServer, mirror: Path, tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = gzip.compress(flip_bit(contents[TRAIN_LABELS]), 1, mtime=0)
    served = mirror_with_replaced_file(mirror, tmp_path / "served", TRAIN_LABELS, wrong)
    serve(served)
    set_expected_checksums(served, monkeypatch)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="could not be downloaded"):
        read_labels(DataSource(cache))
    assert f"fashion-mnist/{TRAIN_LABELS}" not in read_tree(cache)
    assert read_verified_file(FASHION_MNIST, TRAIN_IMAGES, offline_source(cache)) == contents[TRAIN_IMAGES]


def test_files_that_a_server_does_not_have_are_an_error(serve: StartServer, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    serve(tmp_path / "served")
    with pytest.raises(UserError, match="could not be downloaded"):
        read_labels(DataSource(tmp_path / "cache"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.7\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Please log in</html>",
    ],
    ids=["nothing", "another protocol", "cut off", "cut off in a chunk", "a login page"],
)
def test_whatever_a_server_answers_is_at_worst_an_error_for_the_user(
    answer: bytes, tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            # Closing the server ends the waiting with an OSError.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        redirect_download(server.getsockname()[1], monkeypatch)
        try:
            with pytest.raises(UserError, match="could not be downloaded"):
                read_labels(DataSource(tmp_path / "cache"))
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert not (tmp_path / "cache").exists()


def test_without_a_network_the_error_names_the_package_to_install(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    redirect_download(port, monkeypatch)
    with pytest.raises(UserError, match=f"apt-get install {FASHION_MNIST.system_package}"):
        read_labels(DataSource(tmp_path / "cache"))

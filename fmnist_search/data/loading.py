"""The images of a dataset: found or downloaded, verified, split, and laid on the device as one tensor each.

No DataLoader and no per-image objects: 70,000 images are 55 MB of uint8, which every device holds.
`read_training_set` is what searches and trainings see. `read_test_set` is a door of its own; a test pins who may use
it.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import logging
import os
import socket
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.recipe.datasets import FILE_NAMES, Dataset, dataset_with_digest, get_dataset
from fmnist_search.recipe.recipe import Data

log = logging.getLogger(__name__)

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILE_NAMES
DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""Seconds that a silent server is waited for: torchvision itself would wait for ever."""
MIN_PIXEL_STD_FRACTION = 0.1
"""Smallest deviation that a pixel is divided by, as a share of that of all pixels: the outermost ones are nearly always
black, and by their own deviation a rare grey one would stand hundreds of deviations out."""
IMAGE_HEADER_BYTES, LABEL_HEADER_BYTES = 16, 8
IMAGE_SIZE = 28


@dataclass(frozen=True)
class DataSource:
    """Where the files may come from: `cache` is ours to write, `folder` is the user's and is only read."""

    cache: Path
    folder: Path | None = None
    download: bool = True


@dataclass(frozen=True)
class LabelledImages:
    """Pixels (N, 28, 28) uint8 and labels (N,) int64, on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledImages:
        """The same on another device."""
        return LabelledImages(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """What one training sees. Mean and deviation (0..255) come from the images that are trained on, alone.

    `split_digest` names the validation images: two accuracies compare only where it is the same.
    """

    train: LabelledImages
    validation: LabelledImages
    mean: float
    std: float
    digest: str
    split_digest: str
    classes: tuple[str, ...]

    def normalization_stats(self, normalisation: str) -> tuple[float | Tensor, float | Tensor]:
        """What is taken from a pixel of 0..255, and what it is then divided by, under a recipe's normalisation."""
        match normalisation:
            case "unit":
                return 0.0, 255.0
            case "per-pixel":
                return self.per_pixel_stats
            case _:
                return self.mean, self.std

    @functools.cached_property
    def per_pixel_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each pixel over the images that are trained on, (28, 28) float32 on the CPU.

        No deviation is below `MIN_PIXEL_STD_FRACTION` of that of all pixels.
        """
        values = self.train.pixels.cpu().double()
        deviation = values.std(0, correction=0).clamp(min=MIN_PIXEL_STD_FRACTION * self.std)
        return values.mean(0).float(), deviation.float()

    def to(self, device: torch.device | str) -> Images:
        """The same on another device."""
        return dataclasses.replace(self, train=self.train.to(device), validation=self.validation.to(device))


def load_images(data: Data, source: DataSource, device: torch.device | str = "cpu") -> Images:
    """The images of a recipe, split and resident on the device.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    dataset = get_dataset(data.dataset)
    pool = read_training_set(data.dataset, source)
    training, validation = split(pool.labels.numpy(), data)
    train_pixels = pool.pixels[training]
    as_float = train_pixels.double()
    return Images(
        train=LabelledImages(train_pixels, pool.labels[training]).to(device),
        validation=LabelledImages(pool.pixels[validation], pool.labels[validation]).to(device),
        mean=as_float.mean().item(),
        std=as_float.std(correction=0).item(),
        digest=dataset.digest,
        split_digest=hashlib.sha256(validation.numpy().astype("<i8").tobytes()).hexdigest()[:32],
        classes=dataset.classes,
    )


# ------------------------------------------------------------------------------------- the split


def split(labels: npt.NDArray[np.int64], data: Data) -> tuple[Tensor, Tensor]:
    """Indices (int64, ascending) of the images to train on and of those held back for validation.

    Validation is a stratified draw from all images, the training slice one from what is left; both depend on
    nothing but the labels, the counts and the seed, so they are the same for every trial of a study.
    """
    everything = np.arange(len(labels))
    validation = stratified_sample(labels, everything, data.validation, np.random.default_rng([data.seed, 0]))
    training = np.setdiff1d(everything, validation, assume_unique=True)
    if data.train_images:
        training = stratified_sample(labels, training, data.train_images, np.random.default_rng([data.seed, 1]))
    return torch.from_numpy(training), torch.from_numpy(validation)


def stratified_sample(
    labels: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """`count` of the candidate indices, ascending, with each class in its share.

    The quota of class c is count * n_c / N: floors first, the rest by largest remainder, ties to the lower class.
    """
    sizes = np.bincount(labels[candidates])
    quotas, remainders = np.divmod(count * sizes, max(len(candidates), 1))
    neediest = np.argsort(-remainders, kind="stable")
    quotas[neediest[: count - quotas.sum()]] += 1
    chosen = [
        generator.permutation(candidates[labels[candidates] == label])[:quota] for label, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


# -------------------------------------------------------------------------------- reading the files


def read_training_set(dataset: str, source: DataSource) -> LabelledImages:
    """The 60,000 images that training and validation share.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    return _read_labelled_images(dataset, TRAIN_IMAGES, TRAIN_LABELS, source)


def read_test_set(dataset: str, source: DataSource) -> LabelledImages:
    """The 10,000 test images: for finalists, `evaluate`, `predict`, pictures and benchmarks, never for a search.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    return _read_labelled_images(dataset, TEST_IMAGES, TEST_LABELS, source)


def verify_files(dataset: str, source: DataSource) -> dict[str, int]:
    """Make sure that all four files are there and whole; their sizes in bytes, by name.

    Raises:
        UserError: no whole copy of one of them is to be had.
    """
    known = get_dataset(dataset)
    return {name: len(read_verified_file(known, name, source)) for name in FILE_NAMES}


def _read_labelled_images(dataset: str, images: str, labels: str, source: DataSource) -> LabelledImages:
    known = get_dataset(dataset)
    pixels = np.frombuffer(read_verified_file(known, images, source), np.uint8, offset=IMAGE_HEADER_BYTES).reshape(
        -1, IMAGE_SIZE, IMAGE_SIZE
    )
    targets = np.frombuffer(read_verified_file(known, labels, source), np.uint8, offset=LABEL_HEADER_BYTES).astype(
        np.int64
    )
    return LabelledImages(torch.from_numpy(pixels.copy()), torch.from_numpy(targets))


def read_verified_file(dataset: Dataset, name: str, source: DataSource) -> bytes:
    """The verified content of one file: from the user's folder, our cache, the system's package or a download.

    Whatever was found elsewhere is put into the cache, whole or not at all. A folder that the user names counts
    alone: if its file is damaged, that is an error and not a reason to take another.
    """
    content = (
        _read_from_folder(dataset, name, source.folder)
        if source.folder
        else _read_from_any_source(dataset, name, source)
    )
    return gzip.decompress(content) if dataset.compressed else content


def _read_from_folder(dataset: Dataset, name: str, folder: Path) -> bytes:
    content = first_valid(dataset, name, _candidate_paths(folder, dataset, name), strict=True)
    if content is None:
        wanted = f"{name}.gz (as it was published)" if dataset.compressed else f"{name} or {name}.gz"
        raise UserError(
            f"{folder}: no {wanted} there, nor in {dataset.torchvision_class}/raw below it; "
            f"name the folder that holds the files of {dataset.name}, or leave it out"
        )
    return content


def _read_from_any_source(dataset: Dataset, name: str, source: DataSource) -> bytes:
    folder = source.cache / dataset.name
    content = first_valid(dataset, name, [_cache_path(folder, dataset, name)])
    if content is None:
        content = first_valid(dataset, name, _system_paths(dataset, name))
        fetched = _download(dataset) if content is None and source.download else {}
        for other in fetched.keys() - {name}:
            _write_to_cache(_cache_path(folder, dataset, other), fetched[other])
        content = content or fetched.get(name)
        if content is None:
            raise UserError(not_found_message(dataset, name, source))
        _write_to_cache(_cache_path(folder, dataset, name), content)
    return content


def not_found_message(dataset: Dataset, name: str, source: DataSource) -> str:
    """Return what to do about a file that was found nowhere."""
    place, tried = source.cache / dataset.name, ", and could not be downloaded" if source.download else ""
    if package := dataset.system_package:
        where = f"is neither in {place} nor in the system's dataset package"
        remedy = f"install it with `sudo apt-get install {package}`, or name a folder with the files"
    else:
        where = f"is not in {place}"
        remedy = f"fetch its four .gz files from {dataset.download_url} and name their folder with --data-dir"
    return f"{dataset.name}: {name} {where}{tried}; {remedy}"


def _cache_path(folder: Path, dataset: Dataset, name: str) -> Path:
    """Where our copy of a file lies, in the form that its digest is of, so that it can be verified again."""
    return folder / (f"{name}.gz" if dataset.compressed else name)


def _candidate_paths(folder: Path, dataset: Dataset, name: str) -> Iterator[Path]:
    for place in (folder / dataset.torchvision_class / "raw", folder / "raw", folder):
        if not dataset.compressed:
            yield place / name
        yield place / f"{name}.gz"


def _system_paths(dataset: Dataset, name: str) -> Iterator[Path]:
    if dataset.system_package:
        for share in (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"):
            yield Path(share) / "datasets" / dataset.name / f"{name}.gz"


def first_valid(dataset: Dataset, name: str, paths: Iterable[Path], *, strict: bool = False) -> bytes | None:
    """What the digest is of, from the first of the files that is there and whole.

    A damaged one is an error or, unless strict, passed over.
    """
    for path in paths:
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
            if path.suffix == ".gz" and not dataset.compressed:
                content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            complaint = f"{path}: cannot be read ({error})"
        else:
            digest = hashlib.sha256(content).hexdigest()
            if digest == dataset.digests[name]:
                return content
            complaint = f"{path}: {_mismatch_message(dataset, digest, len(content))}"
        if strict:
            raise UserError(f"{complaint}; replace it with the {dataset.name} file, or name no folder")
        log.warning("%s; it is not used", complaint)
    return None


def _mismatch_message(dataset: Dataset, digest: str, size: int) -> str:
    """What is wrong with a file of this digest."""
    owner = dataset_with_digest(digest)
    if owner and owner is not dataset:
        return f"is a file of {owner.name}, not of {dataset.name}"
    return f"cut short, altered or of another dataset ({size:,} bytes, SHA-256 {digest[:12]}...)"


def _download(dataset: Dataset) -> dict[str, bytes]:
    """All files by torchvision's own download, through a folder that is gone afterwards; those that are whole."""
    import torchvision  # takes a second, and hardly anybody comes here twice

    patience = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory() as folder:
        try:
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
            getattr(torchvision.datasets, dataset.torchvision_class)(folder, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            log.warning("%s: the download failed (%s)", dataset.name, " ".join(str(error).split()))
            return {}
        finally:
            socket.setdefaulttimeout(patience)
        found = {name: first_valid(dataset, name, _candidate_paths(Path(folder), dataset, name)) for name in FILE_NAMES}
    return {name: content for name, content in found.items() if content is not None}


def _write_to_cache(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        log.warning("%s: the cache cannot be written (%s); the images are read anew each time", path, error)

"""The images of a dataset: found or downloaded, verified, split, and laid on the device as one tensor each.

No DataLoader and no per-image objects: 70,000 images are 55 MB of uint8, which every device holds.
`training_pool` is what searches and trainings see. `read_test_set` is a door of its own; a test pins who may use it.
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
from fmnist_search.files import whole
from fmnist_search.recipe.datasets import FILES, Dataset, dataset_named, named_by
from fmnist_search.recipe.recipe import Data

log = logging.getLogger(__name__)

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
DOWNLOAD_PATIENCE = 30.0
"""Seconds that a silent server is waited for: torchvision itself would wait for ever."""
PIXEL_DEVIATION_FLOOR = 0.1
"""Smallest deviation that a pixel is divided by, as a share of that of all pixels: the outermost ones are nearly always
black, and by their own deviation a rare grey one would stand hundreds of deviations out."""
IMAGE_HEADER, LABEL_HEADER = 16, 8
SIDE = 28


@dataclass(frozen=True)
class Source:
    """Where the files may come from: `cache` is ours to write, `folder` is the user's and is only read."""

    cache: Path
    folder: Path | None = None
    download: bool = True


@dataclass(frozen=True)
class Labelled:
    """Pixels (N, 28, 28) uint8 and labels (N,) int64, on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Labelled:
        """The same on another device."""
        return Labelled(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """What one training sees. Mean and deviation (0..255) come from the images that are trained on, alone.

    `split_digest` names the validation images: two accuracies compare only where it is the same.
    """

    train: Labelled
    validation: Labelled
    mean: float
    deviation: float
    digest: str
    split_digest: str
    classes: tuple[str, ...]

    def normalised_by(self, normalisation: str) -> tuple[float | Tensor, float | Tensor]:
        """What is taken from a pixel of 0..255, and what it is then divided by, under a recipe's normalisation."""
        match normalisation:
            case "unit":
                return 0.0, 255.0
            case "per-pixel":
                return self.of_each_pixel
            case _:
                return self.mean, self.deviation

    @functools.cached_property
    def of_each_pixel(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each pixel over the images that are trained on, (28, 28) float32 on the CPU.

        No deviation is below `PIXEL_DEVIATION_FLOOR` of that of all pixels.
        """
        values = self.train.pixels.cpu().double()
        deviation = values.std(0, correction=0).clamp(min=PIXEL_DEVIATION_FLOOR * self.deviation)
        return values.mean(0).float(), deviation.float()

    def to(self, device: torch.device | str) -> Images:
        """The same on another device."""
        return dataclasses.replace(self, train=self.train.to(device), validation=self.validation.to(device))


def prepare(data: Data, source: Source, device: torch.device | str = "cpu") -> Images:
    """The images of a recipe, split and resident on the device.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    dataset = dataset_named(data.dataset)
    pool = training_pool(data.dataset, source)
    training, validation = split(pool.labels.numpy(), data)
    train_pixels = pool.pixels[training]
    as_float = train_pixels.double()
    return Images(
        train=Labelled(train_pixels, pool.labels[training]).to(device),
        validation=Labelled(pool.pixels[validation], pool.labels[validation]).to(device),
        mean=as_float.mean().item(),
        deviation=as_float.std(correction=0).item(),
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
    validation = stratified_draw(labels, everything, data.validation, np.random.default_rng([data.seed, 0]))
    training = np.setdiff1d(everything, validation, assume_unique=True)
    if data.train_images:
        training = stratified_draw(labels, training, data.train_images, np.random.default_rng([data.seed, 1]))
    return torch.from_numpy(training), torch.from_numpy(validation)


def stratified_draw(
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


def training_pool(dataset: str, source: Source) -> Labelled:
    """The 60,000 images that training and validation share.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    return _read(dataset, TRAIN_IMAGES, TRAIN_LABELS, source)


def read_test_set(dataset: str, source: Source) -> Labelled:
    """The 10,000 test images: for finalists, `evaluate`, `predict`, pictures and benchmarks, never for a search.

    Raises:
        UserError: no whole copy of the files is to be had.
    """
    return _read(dataset, TEST_IMAGES, TEST_LABELS, source)


def verify(dataset: str, source: Source) -> dict[str, int]:
    """Make sure that all four files are there and whole; their sizes in bytes, by name.

    Raises:
        UserError: no whole copy of one of them is to be had.
    """
    known = dataset_named(dataset)
    return {name: len(find(known, name, source)) for name in FILES}


def _read(dataset: str, images: str, labels: str, source: Source) -> Labelled:
    known = dataset_named(dataset)
    pixels = np.frombuffer(find(known, images, source), np.uint8, offset=IMAGE_HEADER).reshape(-1, SIDE, SIDE)
    targets = np.frombuffer(find(known, labels, source), np.uint8, offset=LABEL_HEADER).astype(np.int64)
    return Labelled(torch.from_numpy(pixels.copy()), torch.from_numpy(targets))


def find(dataset: Dataset, name: str, source: Source) -> bytes:
    """The verified content of one file: from the user's folder, our cache, the system's package or a download.

    Whatever was found elsewhere is put into the cache, whole or not at all. A folder that the user names counts
    alone: if its file is damaged, that is an error and not a reason to take another.
    """
    content = _in_named_folder(dataset, name, source.folder) if source.folder else _anywhere(dataset, name, source)
    return gzip.decompress(content) if dataset.packed else content


def _in_named_folder(dataset: Dataset, name: str, folder: Path) -> bytes:
    content = _first_good(dataset, name, _in_folder(folder, dataset, name), strict=True)
    if content is None:
        wanted = f"{name}.gz (as it was published)" if dataset.packed else f"{name} or {name}.gz"
        raise UserError(
            f"{folder}: no {wanted} there, nor in {dataset.torchvision_class}/raw below it; "
            f"name the folder that holds the files of {dataset.name}, or leave it out"
        )
    return content


def _anywhere(dataset: Dataset, name: str, source: Source) -> bytes:
    folder = source.cache / dataset.name
    content = _first_good(dataset, name, [_cached(folder, dataset, name)])
    if content is None:
        content = _first_good(dataset, name, _of_system(dataset, name))
        fetched = _download(dataset) if content is None and source.download else {}
        for other in fetched.keys() - {name}:
            _store(_cached(folder, dataset, other), fetched[other])
        content = content or fetched.get(name)
        if content is None:
            raise UserError(_nowhere(dataset, name, source))
        _store(_cached(folder, dataset, name), content)
    return content


def _nowhere(dataset: Dataset, name: str, source: Source) -> str:
    place, tried = source.cache / dataset.name, ", and could not be downloaded" if source.download else ""
    if package := dataset.system_package:
        where = f"is neither in {place} nor in the system's dataset package"
        remedy = f"install it with `sudo apt-get install {package}`, or name a folder with the files"
    else:
        where = f"is not in {place}"
        remedy = f"fetch its four .gz files from {dataset.download} and name their folder with --data-dir"
    return f"{dataset.name}: {name} {where}{tried}; {remedy}"


def _cached(folder: Path, dataset: Dataset, name: str) -> Path:
    """Where our copy of a file lies, in the form that its digest is of, so that it can be verified again."""
    return folder / (f"{name}.gz" if dataset.packed else name)


def _in_folder(folder: Path, dataset: Dataset, name: str) -> Iterator[Path]:
    for place in (folder / dataset.torchvision_class / "raw", folder / "raw", folder):
        if not dataset.packed:
            yield place / name
        yield place / f"{name}.gz"


def _of_system(dataset: Dataset, name: str) -> Iterator[Path]:
    if dataset.system_package:
        for share in (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"):
            yield Path(share) / "datasets" / dataset.name / f"{name}.gz"


def _first_good(dataset: Dataset, name: str, paths: Iterable[Path], *, strict: bool = False) -> bytes | None:
    """What the digest is of, from the first of the files that is there and whole.

    A damaged one is an error or, unless strict, passed over.
    """
    for path in paths:
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
            if path.suffix == ".gz" and not dataset.packed:
                content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            complaint = f"{path}: cannot be read ({error})"
        else:
            digest = hashlib.sha256(content).hexdigest()
            if digest == dataset.digests[name]:
                return content
            complaint = f"{path}: {_mistaken(dataset, digest, len(content))}"
        if strict:
            raise UserError(f"{complaint}; replace it with the {dataset.name} file, or name no folder")
        log.warning("%s; it is not used", complaint)
    return None


def _mistaken(dataset: Dataset, digest: str, size: int) -> str:
    """What is wrong with a file of this digest."""
    owner = named_by(digest)
    if owner and owner is not dataset:
        return f"is a file of {owner.name}, not of {dataset.name}"
    return f"cut short, altered or of another dataset ({size:,} bytes, SHA-256 {digest[:12]}...)"


def _download(dataset: Dataset) -> dict[str, bytes]:
    """All files by torchvision's own download, through a folder that is gone afterwards; those that are whole."""
    import torchvision  # takes a second, and hardly anybody comes here twice

    patience = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory() as folder:
        try:
            socket.setdefaulttimeout(DOWNLOAD_PATIENCE)
            getattr(torchvision.datasets, dataset.torchvision_class)(folder, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            log.warning("%s: the download failed (%s)", dataset.name, " ".join(str(error).split()))
            return {}
        finally:
            socket.setdefaulttimeout(patience)
        found = {name: _first_good(dataset, name, _in_folder(Path(folder), dataset, name)) for name in FILES}
    return {name: content for name, content in found.items() if content is not None}


def _store(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(content)
    except OSError as error:
        log.warning("%s: the cache cannot be written (%s); the images are read anew each time", path, error)

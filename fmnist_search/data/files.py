"""The files of a dataset: where they are searched, and how they are verified, cached and downloaded."""

from __future__ import annotations

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

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, make_private_folder
from fmnist_search.recipe.datasets import FILE_NAMES, Dataset, dataset_with_digest, get_dataset
from fmnist_search.workspace import Workspace, image_cache_folder

log = logging.getLogger(__name__)

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILE_NAMES
DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""Time limit of the download for a server that sends nothing; torchvision sets none."""
IMAGE_HEADER_BYTES, LABEL_HEADER_BYTES = 16, 8


@dataclass(frozen=True)
class DataSource:
    """Where the files may come from: the program writes to `cache` and only reads `folder`, which is the user's.

    `download` allows a download where no copy is found.
    """

    cache: Path
    folder: Path | None = None
    download: bool = True

    @classmethod
    def from_workspace(cls, workspace: Workspace) -> DataSource:
        """Return the source of a workspace: the user's cache, and the folder of images where one is named."""
        return cls(image_cache_folder(), workspace.data_dir)


def verify_files(dataset: str, source: DataSource) -> dict[str, int]:
    """Verify all four files and return their sizes in bytes, uncompressed, by name.

    Raises:
        UserError: if no intact copy of a file is found.
    """
    known = get_dataset(dataset)
    return {name: len(read_verified_file(known, name, source)) for name in FILE_NAMES}


def read_verified_file(dataset: Dataset, name: str, source: DataSource) -> bytes:
    """Return the verified content of one file: from the user's folder, the cache, the system's package or a download.

    A file from the package or a download is copied to the cache. If the user names a folder, no other place is
    searched, and a damaged file in it is an error.

    Raises:
        UserError: if no intact copy is found.
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
        names = f"{name}.gz (as it was published)" if dataset.compressed else f"{name} or {name}.gz"
        subfolder = f"{dataset.torchvision_class or '.'}/raw"
        raise UserError(
            f"{folder}: no {names} there, nor in {subfolder} below it; "
            f"name the folder that holds the files of {dataset.name}, or leave it out"
        )
    return content


def _read_from_any_source(dataset: Dataset, name: str, source: DataSource) -> bytes:
    folder = source.cache / dataset.name
    content = first_valid(dataset, name, [_cache_path(folder, dataset, name)])
    if content is None:
        content = first_valid(dataset, name, _system_paths(dataset, name))
        downloaded = _download(dataset) if content is None and source.download else {}
        for other in downloaded.keys() - {name}:
            _write_to_cache(_cache_path(folder, dataset, other), downloaded[other])
        content = content or downloaded.get(name)
        if content is None:
            raise UserError(not_found_message(dataset, name, source))
        _write_to_cache(_cache_path(folder, dataset, name), content)
    return content


def not_found_message(dataset: Dataset, name: str, source: DataSource) -> str:
    """Return the error message for a file that was not found: where it was searched, and what to do."""
    place = source.cache / dataset.name
    tried = ", and could not be downloaded" if source.download and dataset.torchvision_class else ""
    if package := dataset.system_package:
        where = f"is neither in {place} nor in the system's dataset package"
        remedy = f"install it with `sudo apt-get install {package}`, or name a folder with the files"
    elif not dataset.download_url:
        where = f"is damaged or missing in {place}"
        remedy = f"remove that folder, and read the images again with `fmnist-search data {dataset.name} --from FOLDER`"
    else:
        where = f"is not in {place}"
        remedy = f"fetch its four .gz files from {dataset.download_url} and name their folder with --data-dir"
    return f"{dataset.name}: {name} {where}{tried}; {remedy}"


def _cache_path(folder: Path, dataset: Dataset, name: str) -> Path:
    """Return the path of the cached copy, which has the form that its digest is of, so that it can be verified."""
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
    """Return the content, in the form that the digest is of, of the first path that exists and is intact, or None.

    A damaged file is skipped with a warning.

    Raises:
        UserError: if a file is damaged and `strict` is set.
    """
    for path in paths:
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
            if path.suffix == ".gz" and not dataset.compressed:
                content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            problem = f"{path}: cannot be read ({error})"
        else:
            digest = hashlib.sha256(content).hexdigest()
            if digest == dataset.digests[name]:
                return content
            problem = f"{path}: {_mismatch_message(dataset, digest, len(content))}"
        if strict:
            raise UserError(f"{problem}; replace it with the {dataset.name} file, or name no folder")
        log.warning("%s; it is not used", problem)
    return None


def _mismatch_message(dataset: Dataset, digest: str, size: int) -> str:
    """Return what is wrong with a file of this digest."""
    owner = dataset_with_digest(digest)
    if owner and owner is not dataset:
        return f"is a file of {owner.name}, not of {dataset.name}"
    return f"cut short, altered or of another dataset ({size:,} bytes, SHA-256 {digest[:12]}...)"


def _download(dataset: Dataset) -> dict[str, bytes]:
    """Download all files with torchvision into a temporary folder, and return the intact ones by name.

    Return none if torchvision does not have the dataset.
    """
    if not dataset.torchvision_class:
        return {}
    import torchvision  # takes a second, and is needed only for a download

    previous_timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory() as folder:
        try:
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
            getattr(torchvision.datasets, dataset.torchvision_class)(folder, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            log.warning("%s: the download failed (%s)", dataset.name, " ".join(str(error).split()))
            return {}
        finally:
            socket.setdefaulttimeout(previous_timeout)
        found = {name: first_valid(dataset, name, _candidate_paths(Path(folder), dataset, name)) for name in FILE_NAMES}
    return {name: content for name, content in found.items() if content is not None}


def _write_to_cache(path: Path, content: bytes) -> None:
    try:
        make_private_folder(path.parent)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        log.warning("%s: the cache cannot be written (%s); the images are verified again each time", path, error)

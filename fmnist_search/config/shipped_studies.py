"""The study files that are part of the package, so that they can be copied wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.files import atomic_write

_IN_WHEEL = Path(__file__).parents[1] / "shipped_studies"
_IN_REPOSITORY = Path(__file__).parents[2] / "studies"


def shipped_studies() -> dict[str, Path]:
    """Return the study files by the name of their study.

    They are in the folder `shipped_studies` of an installed package, and in `studies` of the repository, from which
    the wheel is built.
    """
    folder = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_REPOSITORY
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def shipped_study(name: str) -> Path:
    """Return the file of a study by its name, such as `quick`.

    Raises:
        UserError: if no study of this name is part of the package.
    """
    studies = shipped_studies()
    if name not in studies:
        raise UserError(f"{name}: is no shipped study; {did_you_mean(name, studies)}")
    return studies[name]


def copy_shipped_study(name: str, folder: Path) -> Path:
    """Write the file of a shipped study into a folder, where it may replace a file, and return its path.

    Raises:
        UserError: if no study of this name is part of the package, or the file cannot be written.
    """
    content, path = shipped_study(name).read_bytes(), folder / f"{name}.toml"
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); copy it into another folder") from None
    return path


def copy_hint(path: Path) -> str:
    """Return how to get a missing study file that is named like a shipped one, else an empty string."""
    return f"`fmnist-search studies copy {path.stem}` writes {path.stem}.toml" if path.stem in shipped_studies() else ""

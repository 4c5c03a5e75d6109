"""The folder in which a local store has its artifacts, and whether an address still leads there.

MLflow stores an absolute address for each experiment, run and model. After a project was moved or copied, these name
the old folder: its files may be missing, or belong to the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.workspace import artifact_path, sqlite_path

ROOT_NAME = "mlruns"
"""The folder of artifacts beside a SQLite store."""
RELOCATE = "run `fmnist-search relocate`"


@dataclass(frozen=True)
class Counterpart:
    """The place of artifacts in a project that was moved or copied, and the folder of the project before."""

    path: Path
    old_project: Path


@dataclass(frozen=True)
class ArtifactRoot:
    """The folder of the artifacts of a SQLite store, in the project that is the folder of its file."""

    project: Path

    @classmethod
    def of_store(cls, tracking_uri: str) -> ArtifactRoot | None:
        """Return the root of a store; None if the store is not a SQLite file."""
        database = sqlite_path(tracking_uri)
        return cls(database.parent) if database else None

    @property
    def folder(self) -> Path:
        """The folder with a subfolder for each experiment."""
        return self.project / ROOT_NAME

    def owns(self, uri: str) -> bool:
        """Return whether artifacts lie below the folder, and no symbolic link leads from it to them.

        Only such artifacts may be deleted: others may belong to another project.
        """
        path = artifact_path(uri)
        return path is not None and self.project.resolve() / ROOT_NAME in path.resolve().parents

    def includes(self, path: Path) -> bool:
        """Return whether a path lies in the folder, however it is written. Links may lead out of the folder."""
        if path.is_relative_to(self.folder):
            return True
        return self.folder.resolve() in (ancestor.resolve() for ancestor in (path, *path.parents))

    def find_counterpart(self, path: Path) -> Counterpart | None:
        """Return where artifacts lie that were recorded in another folder; None if this project has none of them."""
        if self.includes(path):
            return None
        for position, part in enumerate(path.parts[:-1]):
            if part == ROOT_NAME and (self.folder / path.parts[position + 1]).is_dir():
                return Counterpart(self.folder.joinpath(*path.parts[position + 1 :]), Path(*path.parts[:position]))
        return None

    def find_problem(self, uri: str) -> str | None:
        """Return why artifacts cannot be used, with the remedy; None if they can, or are not files of this machine."""
        path = artifact_path(uri)
        if path is None or self.includes(path):
            return None
        if self.find_counterpart(path):
            return f"its artifacts are recorded in {path}, outside of {self.project}, to which they were moved or " + (
                f"copied; {RELOCATE}"
            )
        if not path.exists():
            return f"its artifacts are missing: there is no {path}; restore it, or copy it to {self.folder} and " + (
                RELOCATE
            )
        return None


def check_artifacts(tracking_uri: str, uri: str, subject: str) -> None:
    """Check that artifacts lie where the store says, and belong to it.

    Raises:
        UserError: if they are missing, or the project was moved or copied since they were written.
    """
    root = ArtifactRoot.of_store(tracking_uri)
    if root and (problem := root.find_problem(uri)):
        raise UserError(f"{subject}: {problem}")


def check_existing_artifacts(tracking_uri: str, uri: str, subject: str, remedy: str = "restore it") -> None:
    """Check that artifacts which must exist do, see `check_artifacts`.

    Raises:
        UserError: if they are missing, or the project was moved or copied since they were written.
    """
    check_artifacts(tracking_uri, uri, subject)
    path = artifact_path(uri)
    if ArtifactRoot.of_store(tracking_uri) and path and not path.exists():
        raise UserError(f"{subject}: its artifacts are missing: there is no {path}; {remedy}")

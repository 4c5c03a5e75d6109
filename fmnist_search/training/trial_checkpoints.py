"""Checkpoints of the trials of a study: serialised by the workers, kept in files by the process that runs the study."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, content_digest, is_missing, make_private_folder
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.checkpoint import (
    Checkpoint,
    checkpoint_from_dict,
    checkpoint_to_dict,
    state_from_bytes,
    state_to_bytes,
)

CHECKPOINT_FORMAT = 1
"""The version of the training code that a checkpoint belongs to.

Increase it with each change of the engine after which the same recipe gives other numbers, or its state has other
parts: such a checkpoint would give a result that no recipe can reproduce.
"""
SUFFIX = ".ckpt"
FALLBACK_SUFFIX = ".previous.ckpt"
_MAGIC = b"fmnist-search trial checkpoint"
_NUMERIC_SETTINGS = ("threads", "engine", "memory_format", "deterministic")
"""The fields of `Execution`, besides the kind of device, on which the bits of a training depend."""


def serialize_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as the content of a file: a line with the format and the SHA-256 of the rest, and a state."""
    content = state_to_bytes(checkpoint_to_dict(checkpoint))
    header = b"%s %d %s\n" % (_MAGIC, CHECKPOINT_FORMAT, content_digest(content).encode())
    return header + content


def parse_checkpoint(content: bytes) -> Checkpoint:
    """Return the checkpoint that `serialize_checkpoint` has serialised, with all tensors on the CPU.

    Only tensors and plain values are read, so that no code in the content runs.

    Raises:
        ValueError: if the content is damaged, or is not a checkpoint of this version; the message goes on after its
            name.
    """
    header, _, state = content.partition(b"\n")
    magic, _, rest = header.rpartition(b" ")[0].rpartition(b" ")
    if magic != _MAGIC:
        raise ValueError("is not a checkpoint of a trial")
    if content_digest(state) != header.rpartition(b" ")[2].decode(errors="replace"):
        raise ValueError("is damaged")
    if rest != b"%d" % CHECKPOINT_FORMAT:
        raise ValueError("is of another version of this program")
    try:
        return checkpoint_from_dict(state_from_bytes(state, "checkpoint"), "checkpoint")
    except UserError:
        raise ValueError("is not a checkpoint of a trial") from None


class TrialCheckpoints:
    """The checkpoints of the trials of one study, in a folder: the last one of each trial, and the one before it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._is_failing = False

    def save(self, number: int, content: bytes) -> None:
        """Write a checkpoint of trial `number` that `serialize_checkpoint` returned.

        The last one is kept as the fallback. A process that is killed leaves at least one of the two.

        Raises:
            OSError: if the file cannot be written; the earlier ones are unchanged then.
        """
        make_private_folder(self._folder)
        path = self._path(number)
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, self._fallback_path(number))

    def save_if_possible(self, number: int, content: bytes, on_problem: Callable[[str], None]) -> None:
        """Write a checkpoint as `save` does. If that fails, trainings go on without, and `on_problem` gets one line.

        Further failures are not reported until a checkpoint has been written again.
        """
        try:
            self.save(number, content)
        except OSError as error:
            if not self._is_failing:
                on_problem(
                    f"no checkpoint can be written to {self._folder} ({error.strerror}); trainings go on without"
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def load(
        self, number: int, recipe: Recipe, execution: Execution, images: Images, on_problem: Callable[[str], None]
    ) -> Mapping[str, Any] | None:
        """Return the state from which `run_trial` can resume trial `number`; None if it has to start again.

        It is that of the newest checkpoint that is whole, of this recipe, these images, this version of the training
        code and an execution that gives the same bits. `on_problem` receives one line for each file that is not.
        """
        paths = [path for path in (self._path(number), self._fallback_path(number)) if not is_missing(path)]
        for path in paths:
            try:
                checkpoint = parse_checkpoint(path.read_bytes())
                _check_use(checkpoint, recipe, execution, images)
            except (OSError, ValueError) as error:
                problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
                remedy = "it starts again" if path == paths[-1] else "the checkpoint before it is tried"
                on_problem(f"its checkpoint {path} {problem}; {remedy}")
            else:
                return checkpoint.state
        return None

    def remove(self, number: int) -> None:
        """Remove the checkpoints of a trial, and the folder with the last of them."""
        for path in (self._path(number), self._fallback_path(number)):
            path.unlink(missing_ok=True)
        self._remove_empty_folder()

    def keep_only(self, numbers: Collection[int]) -> None:
        """Remove all checkpoints but those of these trials, and the incomplete files of a process that was killed.

        Only the process that runs the study may call it.
        """
        kept = {path for number in numbers for path in (self._path(number), self._fallback_path(number))}
        for path in list(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path not in kept and path.is_file():
                path.unlink(missing_ok=True)
        self._remove_empty_folder()

    def numbers(self) -> list[int]:
        """Return the numbers of the trials that have a checkpoint, in order."""
        names = (path.name.partition(".") for path in self._folder.glob(f"*{SUFFIX}"))
        return sorted({int(number) for number, _, suffix in names if number.isdecimal() and f".{suffix}" in _SUFFIXES})

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}{SUFFIX}"

    def _fallback_path(self, number: int) -> Path:
        return self._folder / f"{number:03d}{FALLBACK_SUFFIX}"

    def _remove_empty_folder(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.rmdir()


_SUFFIXES = (SUFFIX, FALLBACK_SUFFIX)


def _check_use(checkpoint: Checkpoint, recipe: Recipe, execution: Execution, images: Images) -> None:
    """Check that a training resumed from a checkpoint gives the result of an uninterrupted one.

    Raises:
        ValueError: if it would not.
    """
    if checkpoint.recipe != recipe:
        raise ValueError("is of another recipe")
    if checkpoint.image_digests != [images.digest, images.split_digest]:
        raise ValueError("is of other images")
    stored = checkpoint.execution
    if torch.device(stored["device"]).type != torch.device(execution.device).type:
        raise ValueError(f"is of another device ({stored['device']})")
    for name in _NUMERIC_SETTINGS:
        if stored.get(name) != getattr(execution, name):
            raise ValueError(f"is of another execution ({name}: {stored.get(name)})")

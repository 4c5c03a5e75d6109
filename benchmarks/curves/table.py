"""The file of recorded curves: JSON lines, one for the header and one for each training."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.hyperparameters import Value

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Header:
    """What was recorded and where: the resolved study file, precision, machine and versions."""

    format: int
    study: Mapping[str, Any]
    precision: str
    machine: str
    versions: Mapping[str, str]
    seconds: str


@dataclass(frozen=True)
class Curve:
    """One training: the values that the space varies, and what was measured after each epoch.

    `kind` is "search" (a random recipe at a constant learning rate, as in a search), "neighbour" (the same for a recipe
    close to one of the best), "repeat n" (the recipe again with another seed), "small" (the recipe on fewer images),
    "annealed" (one-cycle, with another seed) or "annealed xN" (the same with N times the learning rate). The first
    table that was recorded has no losses and no training accuracy.
    """

    recipe_number: int
    kind: str
    values: Mapping[str, Value]
    seed: int
    parameters: int
    val_accuracy: Sequence[float]
    seconds: Sequence[float]
    failed: str | None = None
    train_loss: Sequence[float] = ()
    train_accuracy: Sequence[float] = ()
    val_loss: Sequence[float] = ()


@dataclass(frozen=True)
class CurveTable:
    """All curves of a file."""

    header: Header
    curves: tuple[Curve, ...]

    @classmethod
    def read(cls, path: Path, config: StudyConfig | None = None) -> CurveTable:
        """Return the curves of a file.

        Raises:
            UserError: if there is no such file, it has another format, or its curves were recorded in another space
                than that of `config`.
        """
        try:
            first, *rest = path.read_text().splitlines()
            header = Header(**json.loads(first))
            curves = tuple(Curve(**json.loads(line)) for line in rest)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; record one with `python -m benchmarks.curves record`") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: is not a file of curves ({error}); record it again") from None
        if header.format != FORMAT_VERSION:
            raise UserError(
                f"{path}: has format {header.format!r}, and this version reads {FORMAT_VERSION}; record it again"
            )
        if config is not None:
            recorded, wanted = StudyConfig.from_dict(header.study).comparability_key(), config.comparability_key()
            for key in recorded | wanted:
                if recorded.get(key) != wanted.get(key):
                    raise UserError(
                        f"{path}: was recorded with {key} = {recorded.get(key)}, and the study has {wanted.get(key)}; "
                        "take the study that it was recorded with, or another file"
                    )
        return cls(header, curves)

    def seed_deviation(self) -> float | None:
        """Return the standard deviation of the last accuracy over seeds, pooled over repeats in the better half.

        Trainings that hardly learn differ much more. The first training of a recipe is left out, because the half was
        chosen by it. None without repeats.
        """
        found = {
            number: curve.val_accuracy[-1]
            for number, curve in self.curves_of_kind("search").items()
            if not curve.failed
        }
        repeats: dict[int, list[float]] = {}
        for curve in self.curves:
            is_good = found.get(curve.recipe_number, 0.0) >= statistics.median(found.values())
            if curve.kind.startswith("repeat") and is_good:
                repeats.setdefault(curve.recipe_number, []).append(curve.val_accuracy[-1])
        variances = [statistics.variance(accuracies) for accuracies in repeats.values() if len(accuracies) > 1]
        return math.sqrt(statistics.fmean(variances)) if variances else None

    def curves_of_kind(self, kind: str) -> dict[int, Curve]:
        """Return the curves of one kind by the number of their recipe."""
        return {curve.recipe_number: curve for curve in self.curves if curve.kind == kind}

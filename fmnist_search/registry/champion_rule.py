"""Whether one model is better than another past the noise: image by image where both have left a record.

Two models that are judged on the same images share most of their luck. What is left of it is smaller than the error of
either figure alone, so a difference is told from noise sooner where the images are compared one by one.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fmnist_search.recipe.datasets import dataset_with_digest

STANDARD_ERRORS_REQUIRED = 2
"""A difference counts when it is larger than so many of its standard errors."""


def pack_bits(bits: npt.NDArray[np.bool_]) -> str:
    """A bit for each flag, in their order, packed and as base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_bits(text: str, count: int) -> npt.NDArray[np.bool_]:
    """So many flags of a text that `pack_bits` made.

    Raises:
        ValueError: it is no such text, or of another number of flags.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != math.ceil(count / 8):
        raise ValueError(f"{len(packed)} bytes do not hold a bit for each of {count}")
    return np.unpackbits(packed, count=count).astype(np.bool_)


@dataclass(frozen=True)
class CorrectnessRecord:
    """Which validation images were classified right: bool (trainings, images), a row for each fresh seed.

    The trainings have seen the training part alone. The digests name the data and the images that were held back.
    """

    correct: npt.NDArray[np.bool_]
    dataset_digest: str
    split_digest: str

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The accuracy of each training."""
        return tuple(float(share) for share in self.correct.mean(1))

    def to_json(self) -> str:
        """A text of about an eighth of a byte an image and training, a third on top for base64."""
        return json.dumps(
            {
                "dataset_digest": self.dataset_digest,
                "split_digest": self.split_digest,
                "images": self.correct.shape[1],
                "bits": "base64 of numpy.packbits, an image a bit, 1 where it was classified right",
                "right": [pack_bits(row) for row in self.correct],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> CorrectnessRecord:
        """What `to_json` wrote.

        Raises:
            ValueError: it did not write this.
        """
        try:
            stored = json.loads(text)
            images = int(stored["images"])
            if images < 1 or not stored["right"]:
                raise ValueError("there are no images in it")
            right = np.stack([unpack_bits(row, images) for row in stored["right"]])
            return cls(right, str(stored["dataset_digest"]), str(stored["split_digest"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of validation images: {error}") from error


@dataclass(frozen=True)
class ValidationScore:
    """What is known of a model's accuracy on validation images, confirmed on `seeds` fresh seeds.

    `hits` is its record image by image, where there is one.
    """

    mean: float
    std: float
    seeds: int
    images: int
    dataset_digest: str
    split_digest: str
    correctness: CorrectnessRecord | None = None


@dataclass(frozen=True)
class ComparisonResult:
    """Whether a model takes the champion's place, and why in words; `method` is how the two were compared.

    `difference` of the mean accuracies and its standard error are None where nothing could be compared.
    """

    is_better: bool
    method: str
    reason: str
    difference: float | None = None
    standard_error: float | None = None


def compare_with_champion(candidate: ValidationScore, champion: ValidationScore | None) -> ComparisonResult:
    """The rule for a new champion: on the same data and split, better by more than two standard errors.

    Image by image, with d the difference of the mean correctness over seeds, s the deviation of the accuracies over
    n seeds and N images, the difference has the standard error sqrt(var(d)/N + s_a²/n_a + s_b²/n_b): what other
    images, and what other seeds would change. A single seed has no deviation; its s² is taken as p(1-p)/N, that of N
    independent images. Where one of them has no record, each mean has the error of its own deviation, taken as at
    least that of N independent images, over the root of n. One without figures of ours is never beaten: there is
    nothing to compare.
    """
    if champion is None:
        return ComparisonResult(False, "none", "it has no confirmed figures to compare with")
    for what, mine, its in (
        ("data", candidate.dataset_digest, champion.dataset_digest),
        ("validation images", candidate.split_digest, champion.split_digest),
    ):
        if mine != its:
            told = (
                f"it was judged on other {what} ({_dataset_title(its)}, here {_dataset_title(mine)}), "
                f"so nothing compares"
            )
            return ComparisonResult(False, "none", told)
    if (
        candidate.correctness
        and champion.correctness
        and candidate.correctness.correct.shape[1] == champion.correctness.correct.shape[1]
    ):
        rule, (difference, error) = (
            "paired",
            _paired_difference(candidate.correctness.correct, champion.correctness.correct),
        )
        how = f"image by image on the same {candidate.correctness.correct.shape[1]:,} validation images"
    else:
        rule, difference = "unpaired", candidate.mean - champion.mean
        error = math.sqrt(_mean_variance(candidate) + _mean_variance(champion))
        how = "by the confirmed means alone"
    wins = difference > STANDARD_ERRORS_REQUIRED * error
    reason = (
        f"{abs(difference) * 100:.2f} points {'below' if difference < 0 else 'above'} it, {how}; the rule asks for "
        f"more than two standard errors of the difference, {STANDARD_ERRORS_REQUIRED * error * 100:.2f}"
    )
    return ComparisonResult(wins, rule, reason, difference, error)


def _dataset_title(digest: str) -> str:
    """The name of a dataset, or the beginning of a digest that is of none."""
    dataset = dataset_with_digest(digest)
    return dataset.title if dataset else f"digest {digest[:8]}"


def _paired_difference(candidate: npt.NDArray[np.bool_], champion: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Difference of the accuracies and its standard error."""
    differences = candidate.mean(0) - champion.mean(0)
    images = len(differences)
    spread = float(differences.var(ddof=1)) / images if images > 1 else 0.0
    error = math.sqrt(spread + sum(_seed_variance(side.mean(1), images) for side in (candidate, champion)))
    return float(differences.mean()), error


def _seed_variance(accuracies: npt.NDArray[np.float64], images: int) -> float:
    if len(accuracies) == 1:
        return _binomial_variance(float(accuracies[0]), images)
    return float(accuracies.var(ddof=1)) / len(accuracies)


def _mean_variance(score: ValidationScore) -> float:
    return max(score.std**2, _binomial_variance(score.mean, score.images)) / score.seeds


def _binomial_variance(accuracy: float, images: int) -> float:
    """Variance of an accuracy that is counted over so many independent images."""
    return accuracy * (1 - accuracy) / images

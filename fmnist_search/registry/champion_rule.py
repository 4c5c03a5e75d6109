"""The rule that decides whether a model replaces the champion: it must be better by more than the noise.

The errors of two models on the same images are correlated. A comparison image by image therefore has a smaller
standard error than a comparison of two means, and needs a smaller difference.
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
"""A difference counts if it is larger than this number of its standard errors."""


def pack_bits(bits: npt.NDArray[np.bool_]) -> str:
    """Return flags as base64 of packed bits, one bit for each in order."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_bits(text: str, count: int) -> npt.NDArray[np.bool_]:
    """Return the `count` flags of a text that `pack_bits` made, as bool (count,).

    Raises:
        ValueError: if it is not such a text, or holds another number of flags.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != math.ceil(count / 8):
        raise ValueError(f"{len(packed)} bytes do not hold a bit for each of {count}")
    return np.unpackbits(packed, count=count).astype(np.bool_)


@dataclass(frozen=True)
class CorrectnessRecord:
    """Which validation images were classified correctly: bool (trainings, images), one row for each fresh seed.

    The trainings used the training split only. The digests identify the dataset and the validation split.
    """

    correct: npt.NDArray[np.bool_]
    dataset_digest: str
    split_digest: str

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The accuracy of each training, in 0..1."""
        return tuple(float(share) for share in self.correct.mean(1))

    def to_json(self) -> str:
        """Return a JSON text of about one sixth of a byte for each image and training."""
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
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: if the text is not such a record.
        """
        try:
            stored = json.loads(text)
            images = int(stored["images"])
            if images < 1 or not stored["right"]:
                raise ValueError("it holds no images")
            correct = np.stack([unpack_bits(row, images) for row in stored["right"]])
            return cls(correct, str(stored["dataset_digest"]), str(stored["split_digest"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of validation images: {error}") from error


@dataclass(frozen=True)
class ValidationScore:
    """The accuracy of a model on validation images, confirmed with `seeds` fresh seeds.

    `mean` and `std` are over the seeds; `correctness` is the record image by image, if there is one.
    """

    mean: float
    std: float
    seeds: int
    images: int
    dataset_digest: str
    split_digest: str
    correctness: CorrectnessRecord | None = None

    @classmethod
    def of_one(cls, record: CorrectnessRecord) -> ValidationScore:
        """Return the score of a model that was selected on these validation images, of the record's one training."""
        (accuracy,), images = record.accuracies, record.correct.shape[1]
        return cls(accuracy, 0.0, 1, images, record.dataset_digest, record.split_digest, record)

    @property
    def in_percent(self) -> str:
        """The mean with its deviation, for readers."""
        return f"{self.mean:.2%} ± {self.std:.2%} (n = {self.seeds})" if self.seeds > 1 else f"{self.mean:.2%}"


@dataclass(frozen=True)
class ComparisonResult:
    """Whether a model replaces the champion, and the reason in words.

    `method` is "paired" (image by image), "unpaired" (by the means), "first" or "none". `difference` of the mean
    accuracies and its standard error are None if nothing was compared.
    """

    is_better: bool
    method: str
    reason: str
    difference: float | None = None
    standard_error: float | None = None


def compare_with_champion(candidate: ValidationScore, champion: ValidationScore | None) -> ComparisonResult:
    """Apply the rule for a new champion: on the same data and split, better by more than two standard errors.

    Image by image, with d the difference of the mean correctness over seeds, s the standard deviation of the accuracies
    over n seeds, and N images, the standard error of the difference is sqrt(var(d)/N + s_a²/n_a + s_b²/n_b): the first
    term is the effect of other images, the others that of other seeds. For a single seed, s² is p(1-p)/N, the variance
    of N independent images. If one of the two has no record, the variance of each mean is s²/n, where s² is at least
    that of N independent images. A champion without a validation score is never replaced.
    """
    if champion is None:
        return ComparisonResult(False, "none", "the champion has no confirmed validation score to compare with")
    for what, own, other in (
        ("data", candidate.dataset_digest, champion.dataset_digest),
        ("validation images", candidate.split_digest, champion.split_digest),
    ):
        if own != other:
            reason = (
                f"the champion was evaluated on other {what} ({_dataset_title(other)}, here {_dataset_title(own)}), "
                "so the two cannot be compared"
            )
            return ComparisonResult(False, "none", reason)
    ours, theirs = candidate.correctness, champion.correctness
    if ours and theirs and ours.correct.shape[1] == theirs.correct.shape[1]:
        method = "paired"
        difference, error = _paired_difference(ours.correct, theirs.correct)
        how = f"image by image on the same {ours.correct.shape[1]:,} validation images"
    else:
        method, difference = "unpaired", candidate.mean - champion.mean
        error = math.sqrt(_mean_variance(candidate) + _mean_variance(champion))
        how = "by the confirmed means only"
    required = STANDARD_ERRORS_REQUIRED * error
    reason = (
        f"{abs(difference) * 100:.2f} points {'below' if difference < 0 else 'above'} the champion, {how}; the rule "
        f"requires more than two standard errors of the difference, {required * 100:.2f}"
    )
    return ComparisonResult(difference > required, method, reason, difference, error)


def _dataset_title(digest: str) -> str:
    """Return the title of the dataset with a digest, or the beginning of a digest that is unknown."""
    dataset = dataset_with_digest(digest)
    return dataset.title if dataset else f"digest {digest[:8]}"


def _paired_difference(candidate: npt.NDArray[np.bool_], champion: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the difference of the mean accuracies and its standard error, of bool (trainings, images) each."""
    differences = candidate.mean(0) - champion.mean(0)
    images = len(differences)
    image_variance = float(differences.var(ddof=1)) / images if images > 1 else 0.0
    error = math.sqrt(image_variance + sum(_seed_variance(side.mean(1), images) for side in (candidate, champion)))
    return float(differences.mean()), error


def _seed_variance(accuracies: npt.NDArray[np.float64], images: int) -> float:
    if len(accuracies) == 1:
        return _binomial_variance(float(accuracies[0]), images)
    return float(accuracies.var(ddof=1)) / len(accuracies)


def _mean_variance(score: ValidationScore) -> float:
    return max(score.std**2, _binomial_variance(score.mean, score.images)) / score.seeds


def _binomial_variance(accuracy: float, images: int) -> float:
    """Return the variance of an accuracy over independent images."""
    return accuracy * (1 - accuracy) / images

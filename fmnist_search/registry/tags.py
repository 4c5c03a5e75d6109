"""Aliases, tags and files of registered models and versions. They are stored and never change."""

from __future__ import annotations

from fmnist_search.files import content_digest
from fmnist_search.recipe.formatting import format_value
from fmnist_search.registry.champion_rule import CorrectnessRecord, ValidationScore
from fmnist_search.results.training import Accuracy

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases of a registered model, and values of the tag `DECISION`."""

MODEL_CARD_FILE, CORRECTNESS_FILE = "model_card.md", "validation_hits.json"
"""Artifacts of the run that a version comes from."""

REGISTERED_MODEL = "registered_model"
"""Tag of a logged model: the name under which it is to be registered."""
PROMOTER = "promoter"
"""Tag of a version or a logged model: the process that promotes it."""
PROMOTION = "promotion"
"""Tag of a version: the key of the promotion that registered it, which begins with the key of its selection."""
DECISION, COMPARISON, COMPARED_BY, COMPARED_WITH = "decision", "comparison", "compared_by", "compared_with"
DIFFERENCE, DIFFERENCE_ERROR = "difference", "difference_error"
PREVIOUS_CHAMPION, PREVIOUS_VERSIONS = "champion_before", "versions_before"
"""The champion, and the number of the last version, when a version was registered while no other was undecided."""

STUDY, TRIAL, ENSEMBLE, NETWORK, DATASET, MEMBERS = "study", "trial", "ensemble", "network", "dataset", "members"
SEEDS = "seeds"
"""The seeds of the trainings that confirmed a version, separated by commas."""
MEMBER_RUNS = "member_runs"
"""The ids of the runs that an ensemble consists of, separated by commas."""
SELECTED_ON_VALIDATION = "flattered"
"""Set if the validation images were also used to select the weights, so that the validation score is too high."""

DATASET_DIGEST, SPLIT_DIGEST = "dataset_digest", "split_digest"
CONFIRMED_MEAN, CONFIRMED_STD, CONFIRMED_SEEDS = "confirmed_mean", "confirmed_deviation", "confirmed_seeds"
VALIDATION_IMAGES = "validation_images"
CORRECTNESS = "validation_hits"
"""The path of the artifact that holds the correctness record."""

FILE_DIGESTS = "sha256"
"""The SHA-256 of each file of the model, by path, as JSON. A model is loaded only if its files are these."""
CORRECTNESS_DIGEST = "validation_hits_sha256"
"""The SHA-256 of the artifact that holds the correctness record."""

TEST_HITS, TEST_IMAGE_COUNT, TEST_EVALUATIONS = "test_hits", "test_images", "test_evaluations"
TEST_LOSS = "test_loss"
"""The mean cross-entropy on the test images; earlier versions of this program did not store it."""
TEST_CORRECT = "test_right"
"""Which test images the version classifies correctly: one bit for each in order, packed, as base64.

Earlier versions of this program stored it. It is the artifact `TEST_CORRECT_FILE` now, unless the run was deleted."""
TEST_CORRECT_FILE, TEST_CORRECT_DIGEST = "test_hits.txt", "test_hits_sha256"
"""The artifact with the packed bits, and the tag that holds its SHA-256."""
ACCURACY_TEST, ACCURACY_CONFIRMED, ACCURACY_VALIDATION = "accuracy_test", "accuracy_confirmed", "accuracy_validation"
"""Accuracies in percent for readers of the page, which has them first: it sorts tags by name."""
WEIGHTS = "weights_sha256"
"""The SHA-256 of recipes and weights, by which the same model is not registered twice."""


def accuracy_tag(accuracy: Accuracy) -> str:
    """Return the value of the tag `ACCURACY_TEST`."""
    interval = f"95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}"
    return f"{accuracy.value:.2%} of {accuracy.images:,} images ({interval})"


def score_tags(score: ValidationScore) -> dict[str, str]:
    """Return the tags that hold the validation score of a version, so that it can be compared later."""
    return {
        DATASET_DIGEST: score.dataset_digest,
        SPLIT_DIGEST: score.split_digest,
        VALIDATION_IMAGES: str(score.images),
        CONFIRMED_MEAN: format_value(score.mean),
        CONFIRMED_STD: format_value(score.std),
        CONFIRMED_SEEDS: str(score.seeds),
        **(_correctness_tags(score.correctness) if score.correctness else {}),
    }


def _correctness_tags(record: CorrectnessRecord) -> dict[str, str]:
    digest = content_digest(record.to_json().encode())
    return {CORRECTNESS: CORRECTNESS_FILE, CORRECTNESS_DIGEST: digest}

"""Tests of `training.evaluation` against a loop over single images and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.models.classifier import Classifier, build
from fmnist_search.models.cnn import Cnn
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.evaluation import (
    CPU_BATCH_SIZE,
    GPU_BATCH_SIZE,
    calibration,
    evaluate,
    misclassifications,
    predict_logits,
)
from fmnist_search.training.trial import run_trial


@pytest.fixture(scope="module")
def classifier(images: Images, execution: Execution) -> Classifier:
    """A network that classifies some images right and others wrong, so that both are counted."""
    model = Cnn(depth=2, width_1=8, width_2=16)
    recipe = Recipe(model=model, epochs=3, batch_size=64, data=Data(train_images=500, validation=500))
    weights = run_trial(recipe.replace({"optimizer.learning_rate": 0.02}), images, execution).weights
    assert weights is not None
    trained = build(model)
    trained.load_state_dict(weights)
    return trained.eval()


@torch.no_grad()
def classify_one_by_one(classifier: Classifier, pixels: Tensor) -> Tensor:
    return torch.cat([classifier(image[None]) for image in pixels])


def test_result_equals_that_of_a_loop_over_single_images(classifier: Classifier, images: Images) -> None:
    few = LabelledImages(images.validation.pixels[:300], images.validation.labels[:300])
    logits = classify_one_by_one(classifier, few.pixels)
    confusion = [[0] * 10 for _ in range(10)]
    for label, prediction in zip(few.labels.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[label][prediction] += 1
    found = evaluate(classifier, few)
    assert [list(row) for row in found.confusion] == confusion
    assert found.accuracy == sum(confusion[label][label] for label in range(10)) / 300
    assert 0.2 < found.accuracy < 0.95
    assert found.loss == pytest.approx(functional.cross_entropy(logits, few.labels).item(), rel=1e-5)


def test_confusion_counts_each_image_in_the_row_of_its_class(classifier: Classifier, images: Images) -> None:
    found = evaluate(classifier, images.validation)
    assert [sum(row) for row in found.confusion] == torch.bincount(images.validation.labels, minlength=10).tolist()
    assert found.accuracy == sum(found.confusion[label][label] for label in range(10)) / len(images.validation)


@pytest.mark.parametrize("batch_size", [1, 7, 499, 500, 5_000])
def test_batch_size_does_not_change_the_result(batch_size: int, classifier: Classifier, images: Images) -> None:
    expected = evaluate(classifier, images.validation)
    sizes: list[int] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = evaluate(classifier, images.validation, batch_size=batch_size)
    hook.remove()
    assert sizes == [len(batch) for batch in torch.split(images.validation.labels, batch_size)]
    assert (found.accuracy, found.confusion) == (expected.accuracy, expected.confusion)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_batch_sizes_divide_the_default_validation_images() -> None:
    assert Data().validation % CPU_BATCH_SIZE == 0
    assert Data().validation % GPU_BATCH_SIZE == 0


def test_classes_without_images_have_rows_of_zeros(classifier: Classifier, images: Images) -> None:
    bags = images.validation.labels == 8
    found = evaluate(classifier, LabelledImages(images.validation.pixels[bags], images.validation.labels[bags]))
    assert (len(found.confusion), {len(row) for row in found.confusion}) == (10, {10})
    assert [label for label, row in enumerate(found.confusion) if any(row)] == [8]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_float32_and_carry_no_gradient(precision: str, classifier: Classifier, images: Images) -> None:
    logits = predict_logits(classifier, images.validation.pixels[:300], precision)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((300, 10), torch.float32, False)
    torch.testing.assert_close(
        logits, classify_one_by_one(classifier, images.validation.pixels[:300]), atol=0.3, rtol=0.1
    )


def test_bfloat16_is_used_if_requested(classifier: Classifier, images: Images) -> None:
    pixels = images.validation.pixels[:300]
    assert not torch.equal(predict_logits(classifier, pixels, "bfloat16"), predict_logits(classifier, pixels))


# ------------------------------------------------------------------------------------ calibration


@st.composite
def probabilities_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Return probabilities of some images, and their labels."""
    images, classes = draw(st.integers(1, 80)), draw(st.integers(2, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(images, classes, generator=generator) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    return logits.softmax(1), torch.randint(0, classes, (images,), generator=generator)


@given(probabilities_and_labels(), st.integers(1, 20))
def test_calibration_error_is_in_range_and_each_image_in_one_bin(predictions: tuple[Tensor, Tensor], bins: int) -> None:
    probabilities, labels = predictions
    found = calibration(probabilities, labels, bins)
    assert 0 <= found.expected_error <= 1
    assert len(found.bins) == bins
    assert sum(bin_.images for bin_ in found.bins) == len(labels)
    for bin_ in found.bins:
        if bin_.images:
            assert bin_.low - 1e-9 <= bin_.confidence <= bin_.high + 1e-6


@given(probabilities_and_labels())
def test_calibration_bins_equal_those_of_scikit_learn(predictions: tuple[Tensor, Tensor]) -> None:
    probabilities, labels = predictions
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).numpy()
    accuracies, confidences = calibration_curve(
        np.append(right, [True, False]), np.append(np.clip(confidence.numpy(), 0, 1), [1.0, 0.0]), n_bins=15
    )
    # scikit-learn needs both outcomes, so one image is added at each end; the outer bins are not compared.
    filled = [bin_ for bin_ in calibration(probabilities, labels).bins[1:-1] if bin_.images]
    inside = slice(1, -1)
    assert [bin_.accuracy for bin_ in filled] == pytest.approx(accuracies[inside].tolist())
    assert [bin_.confidence for bin_ in filled] == pytest.approx(confidences[inside].tolist())


@given(st.lists(st.integers(51, 99), min_size=1, max_size=10, unique=True))
def test_calibrated_probabilities_have_no_error(percents: list[int]) -> None:
    rows = [(percent / 100, index < percent) for percent in percents for index in range(100)]
    confidence = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    labels = torch.tensor([0 if right else 1 for _, right in rows])
    assert calibration(torch.stack([confidence, 1 - confidence], 1), labels).expected_error == pytest.approx(
        0, abs=1e-9
    )


def test_confident_and_always_wrong_is_the_largest_error() -> None:
    found = calibration(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    assert found.expected_error == 1
    assert [bin_.images for bin_ in found.bins] == [0] * 14 + [2]


# ------------------------------------------------------------------------------- misclassifications


@given(probabilities_and_labels(), st.integers(1, 30))
def test_misclassifications_are_ordered_by_confidence(predictions: tuple[Tensor, Tensor], most: int) -> None:
    probabilities, labels = predictions
    best = probabilities.max(1)
    wrong = [(-best.values[n].item(), n) for n in range(len(labels)) if best.indices[n].item() != labels[n].item()]
    found = misclassifications(probabilities, labels, most)
    assert [(-mistake.probability, mistake.index) for mistake in found] == sorted(wrong)[:most]
    for mistake in found:
        assert (mistake.true, mistake.predicted) == (labels[mistake.index], best.indices[mistake.index])


def test_earlier_one_of_equally_confident_mistakes_comes_first() -> None:
    probabilities = torch.tensor([[0.4, 0.6], [0.75, 0.25]]).repeat(50, 1)
    found = misclassifications(probabilities, torch.tensor([0, 1]).repeat(50), limit=60)
    assert [mistake.index for mistake in found] == [*range(1, 100, 2), *range(0, 20, 2)]

"""The page of a confusion matrix: its pairs, in order, with the images that were confused."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from fmnist_search.reporting.confusion_page import confusion_page
from fmnist_search.training.evaluation import confused_pairs, confusion_matrix

CLASSES = ["shirt", "<b>coat</b>", "bag"]
LABELS = torch.tensor([0, 0, 0, 0, 1, 2])
PROBABILITIES = torch.tensor(
    [[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.6, 0.0], [0.99, 0.01, 0.0], [0.0, 0.0, 1.0]]
)
PIXELS = torch.arange(6, dtype=torch.uint8)[:, None, None].expand(6, 28, 28) * 40


def test_pairs_come_by_frequency_and_their_mistakes_by_confidence() -> None:
    first, second = confused_pairs(PROBABILITIES, LABELS)
    assert (first.true, first.predicted, first.count) == (0, 1, 3)
    assert [mistake.index for mistake in first.mistakes] == [2, 1, 3]
    assert (second.true, second.predicted, second.count) == (1, 0, 1)
    (only,) = confused_pairs(PROBABILITIES, LABELS, limit=1, images=2)
    assert (only.count, [mistake.index for mistake in only.mistakes]) == (3, [2, 1])


def test_page_opens_on_the_most_confused_pair_and_shows_its_images() -> None:
    pairs = confused_pairs(PROBABILITIES, LABELS)
    page = confusion_page("a title", confusion_matrix(PROBABILITIES, LABELS), CLASSES, pairs, PIXELS)
    assert re.findall(r'<details id="([^"]+)"( open)?>', page) == [("pair-0-1", " open"), ("pair-1-0", "")]
    assert '<a href="#pair-0-1">3</a>' in page
    assert "3 of 4 images of shirt are taken for &lt;b&gt;coat&lt;/b&gt;" in page
    assert "<b>" not in page
    shown = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r"base64,([^\"]+)", page)]
    assert [int(np.asarray(image)[0, 0]) for image in shown] == [255 - 40 * index for index in (2, 1, 3, 4)]


def test_page_without_mistakes_says_so() -> None:
    probabilities = torch.eye(3)
    matrix = confusion_matrix(probabilities, torch.arange(3))
    page = confusion_page("a title", matrix, CLASSES, confused_pairs(probabilities, torch.arange(3)), PIXELS)
    assert "There are no mistakes." in page

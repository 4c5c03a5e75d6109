"""The confusion matrix as an HTML page, with images of the pairs of classes that are confused most often.

The page has no scripts and needs no network, so it also works in MLflow's viewer of artifacts.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from fmnist_search.reporting.html_page import html_page, image_html
from fmnist_search.training.evaluation import ConfusedPair, Misclassification

if TYPE_CHECKING:
    from torch import Tensor

_STYLE = (
    "table { border-collapse: collapse; margin: 1em 0 } th { font-weight: normal; padding: 0.2em 0.5em } "
    "th[scope=row] { text-align: right } td { width: 3.2em; height: 2em; text-align: center } td a { color: inherit } "
    "summary { cursor: pointer; margin: 0.8em 0 0.4em } figure { display: inline-block; margin: 0 0.5em 0.5em 0 } "
    "figure img { width: 84px; image-rendering: pixelated } figcaption { font-size: 0.8em; text-align: center }"
)


def confusion_page(
    title: str,
    confusion: Sequence[Sequence[int]],
    classes: Sequence[str],
    pairs: Sequence[ConfusedPair],
    pixels: Tensor,
) -> str:
    """Return a page with the confusion matrix and, below it, images of each pair; the first pair is open.

    Args:
        title: The title of the page.
        confusion: Counts of images, rows true and columns predicted.
        classes: The names of the classes.
        pairs: The pairs that are confused most often, as `confused_pairs` returns them.
        pixels: All images, uint8 (N, 28, 28); the mistakes of the pairs hold indices of them.
    """
    body = [
        '<p class="note">Rows are true classes, columns predicted ones. Linked cells lead to images.</p>',
        _matrix(confusion, classes, {(pair.true, pair.predicted) for pair in pairs}),
        "<h2>The pairs that are confused most often</h2>",
        '<p class="note">With the probability of the predicted class; the most confident mistakes come first.</p>',
        *(_pair(pair, sum(confusion[pair.true]), classes, pixels, is_open=not i) for i, pair in enumerate(pairs)),
        *([] if pairs else ["<p>There are no mistakes.</p>"]),
    ]
    return html_page(title, body, style=_STYLE)


def _matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str], linked: set[tuple[int, int]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cell(count, sum(row), (true, predicted), linked) for predicted, count in enumerate(row))
        + "</tr>"
        for true, (name, row) in enumerate(zip(classes, confusion, strict=True))
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _cell(count: int, images: int, pair: tuple[int, int], linked: set[tuple[int, int]]) -> str:
    share = count / max(images, 1)
    text = f'<a href="#{_anchor(*pair)}">{count}</a>' if pair in linked else str(count or "")
    color = "; color: white" if share > 0.5 else ""
    return f'<td style="background: rgba(8, 48, 107, {share:.3f}){color}">{text}</td>'


def _pair(pair: ConfusedPair, images: int, classes: Sequence[str], pixels: Tensor, *, is_open: bool) -> str:
    true, predicted = classes[pair.true], classes[pair.predicted]
    share = f"{pair.count} of {images} images of {true} are taken for {predicted}"
    shown = f", {len(pair.mistakes)} are shown" if len(pair.mistakes) < pair.count else ""
    figures = "".join(_image(mistake, pixels, f"{true}, taken for {predicted}") for mistake in pair.mistakes)
    opened = " open" if is_open else ""
    anchor = _anchor(pair.true, pair.predicted)
    return f'<details id="{anchor}"{opened}><summary>{escape(share + shown)}</summary>{figures}</details>'


def _image(mistake: Misclassification, pixels: Tensor, alternative_text: str) -> str:
    content = io.BytesIO()
    dark_on_light = 255 - pixels[mistake.index].cpu().numpy()
    Image.fromarray(dark_on_light).save(content, format="png", optimize=True)
    image = image_html(content.getvalue(), alternative_text)
    return f"<figure>{image}<figcaption>{mistake.probability:.1%}</figcaption></figure>"


def _anchor(true: int, predicted: int) -> str:
    return f"pair-{true}-{predicted}"

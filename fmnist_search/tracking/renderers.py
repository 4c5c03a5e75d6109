"""Artifacts that are made of small data when there is time for it: figures and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_search.reporting.style import Figure

Renderer = Callable[[Mapping[str, Any]], "str | Figure"]
"""Makes a text or a figure of the data of a rendering event."""

CONFUSION, SUMMARY = "confusion", "summary"
"""Names of the renderers. They are stored in outboxes and never change."""


def _render_confusion(data: Mapping[str, Any]) -> Figure:
    from fmnist_search.reporting.training_plots import confusion_figure

    return confusion_figure(data["confusion"], data["classes"], data["title"])


def _render_summary(data: Mapping[str, Any]) -> str:
    from fmnist_search.recipe.recipe import Recipe
    from fmnist_search.reporting.model_summary import summarize

    recipe = Recipe().replace(data["recipe"])
    return summarize(recipe.model, recipe.data.num_classes).text


RENDERERS: Mapping[str, Renderer] = {CONFUSION: _render_confusion, SUMMARY: _render_summary}

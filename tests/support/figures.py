"""Figures as PNG files and as text, for tests."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


def render_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file. matplotlib warns if the layout fails, and tests turn that into an error."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    assert content.getvalue().startswith(b"\x89PNG")
    return content.getvalue()


def figure_texts(figure: Figure) -> str:
    """Return the texts of the figure outside its axes, a line each."""
    return "\n".join(text.get_text() for text in figure.texts)

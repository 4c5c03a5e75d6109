"""What tests of pictures look at."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


def render_png(figure: Figure) -> bytes:
    """The picture as a file; what overlaps beyond repair is warned of, and a warning is an error there."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    return picture.getvalue()


def figure_texts(figure: Figure) -> str:
    """What stands on the picture beside its axes."""
    return "\n".join(text.get_text() for text in figure.texts)

"""What the HTML pages of runs have in common: head and style, and images inside of the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from fmnist_search.reporting.colors import GREY, TEXT_COLOR

_STYLE = (
    f"body {{ font-family: sans-serif; color: {TEXT_COLOR}; max-width: 1100px; margin: 1em auto; padding: 0 1em }} "
    f"h2 {{ margin: 1.5em 0 0 }} .note {{ color: {GREY}; margin: 0.2em 0 0 }} img {{ max-width: 100% }}"
)


def html_page(title: str, body: Sequence[str], *, style: str = "", script: str = "") -> str:
    """Return a page that needs no network; `body`, `style` and `script` are inserted as they are."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE} {style}</style>",
            *([f"<script>{script}</script>"] if script else []),
            f"</head><body><h1>{escape(title)}</h1>",
            *body,
            "</body></html>\n",
        ]
    )


def image_html(png: bytes, alternative_text: str) -> str:
    """Return the element of an image whose content is part of the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img src="{source}" alt="{escape(alternative_text)}">'

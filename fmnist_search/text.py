"""Functions that format text."""

import re
from collections.abc import Sequence

_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, reorder or break a line, and bytes of file names that are not UTF-8."""


def printable(text: str, *, keep: str = "") -> str:
    """Return a text that a terminal shows as it is: control characters, except `keep`, become escapes such as \\x1b."""
    return _CONTROL_CHARACTERS.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline. The first row is the head; cells are not escaped."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])

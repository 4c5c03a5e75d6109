"""Functions that format text."""

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline. The first row is the head; cells are not escaped."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])

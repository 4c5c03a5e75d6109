"""The commands and the code that README and docs show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`(?P<text>[^`]+)`(?!`)")
_PROGRAM = "fmnist-search"


@dataclass(frozen=True)
class Snippet:
    """A command line, or a block of code in another language, and where it is shown."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def page_snippets(page: Path) -> list[Snippet]:
    """Return what a page shows, in its order: command lines, also those within sentences, and blocks of code."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found: list[Snippet] = []
    end = 0
    for block in _BLOCK.finditer(text):
        found += _inline_commands(name, text, end, block.start())
        first = text.count("\n", 0, block.start("text")) + 1
        if block["language"] == "console":
            for number, line in enumerate(block["text"].splitlines()):
                if line.startswith("$ "):
                    found.append(Snippet(name, first + number, "console", _without_comment(line[2:])))
        else:
            found.append(Snippet(name, first, block["language"], block["text"]))
        end = block.end()
    return [*found, *_inline_commands(name, text, end, len(text))]


def all_commands() -> list[Snippet]:
    """Return the command lines of all pages."""
    return [snippet for page in PAGES for snippet in page_snippets(page) if snippet.language == "console"]


def program_arguments(command: str) -> list[str] | None:
    """Return the arguments of a command line of this program, without redirections; None for another program."""
    words = shlex.split(command.partition(" > ")[0])
    return words[1:] if words and words[0] == _PROGRAM else None


def _inline_commands(page: str, text: str, start: int, end: int) -> Iterator[Snippet]:
    """Yield the command lines within sentences: the name of this program, or `python -m`, and arguments."""
    for span in _INLINE.finditer(text, start, end):
        command = " ".join(span["text"].split())
        if command.startswith((f"{_PROGRAM} ", "python -m ", "mlflow run ", "make ")):
            yield Snippet(page, text.count("\n", 0, span.start()) + 1, "console", command)


def _without_comment(line: str) -> str:
    """Return a command line without the comment behind it."""
    return re.sub(r"\s+# .*$", "", line).strip()

"""The commands and the code that README and docs show."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
_TEXT_PART = re.compile(r"^#+ (?P<heading>.+)$|(?<!`)`(?P<code>[^`]+)`(?!`)", re.MULTILINE)
_PROGRAM = "fmnist-search"


@dataclass(frozen=True)
class Snippet:
    """A command line, or a block of code in another language, and where it is shown."""

    page: str
    section: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def page_snippets(page: Path) -> list[Snippet]:
    """Return what a page shows, in its order: command lines, also those within sentences, and blocks of code."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found: list[Snippet] = []
    section, end = "", 0
    for block in [*_BLOCK.finditer(text), None]:
        start = block.start() if block else len(text)
        for part in _TEXT_PART.finditer(text, end, start):
            section = part["heading"] or section
            if part["code"] and (command := _inline_command(part["code"])):
                found.append(Snippet(name, section, text.count("\n", 0, part.start()) + 1, "console", command))
        if block:
            found += _block_snippets(name, section, text.count("\n", 0, block.start("text")) + 1, block)
            end = block.end()
    return found


def page_example(page: str, language: str, containing: str = "separable") -> str:
    """Return the first block in a language that contains a text, of a page of docs."""
    snippets = page_snippets(ROOT / "docs" / page)
    return next(each.text for each in snippets if each.language == language and containing in each.text)


def all_commands() -> list[Snippet]:
    """Return the command lines of all pages."""
    return [snippet for page in PAGES for snippet in page_snippets(page) if snippet.language == "console"]


def program_arguments(command: str) -> list[str] | None:
    """Return the arguments of a command line of this program, without redirections; None for another program."""
    words = shlex.split(command.partition(" > ")[0])
    return words[1:] if words and words[0] == _PROGRAM else None


def reduce_study_files(folder: Path) -> None:
    """Give the study files of a folder small budgets and no processes of workers; everything else stays as written."""
    for path in [*folder.glob("*.toml"), *folder.glob("studies/*.toml")]:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
        if "space" in tables:
            tables["budget"] = {"trials": 2, "epochs": 1}
            tables["data"] = {**tables.get("data", {}), "train_images": 1200, "validation": 500}
            tables["execution"] = {**tables.get("execution", {}), "backend": "threads", "workers": 1}
            recipes = int(tables["name"] == "quick")
            tables["finalists"] = {"recipes": recipes, "seeds": 1, "epochs": 1, "images": "slice", "refit": "none"}
            path.write_text(tomli_w.dumps(tables))


def _block_snippets(page: str, section: str, first: int, block: re.Match[str]) -> list[Snippet]:
    """Return the command lines of a block of the console, or the block of another language."""
    if block["language"] != "console":
        return [Snippet(page, section, first, block["language"], block["text"])]
    return [
        Snippet(page, section, first + number, "console", _without_comment(line[2:]))
        for number, line in enumerate(block["text"].splitlines())
        if line.startswith("$ ")
    ]


def _inline_command(code: str) -> str | None:
    """Return the command line that stands within a sentence, or None if the code is something else."""
    command = " ".join(code.split())
    return command if command.startswith((f"{_PROGRAM} ", "python -m ", "mlflow run ", "make ")) else None


def _without_comment(line: str) -> str:
    """Return a command line without the comment behind it."""
    return re.sub(r"\s+# .*$", "", line).strip()

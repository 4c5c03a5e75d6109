"""The files around the code keep the promises they make to each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from fmnist_search.cli import app
from fmnist_search.config.schema import VARIANTS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
PINNED_REQUIREMENTS = [Requirement(line) for line in CONDA["dependencies"][-1]["pip"]]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_each_pin_of_conda_is_exact_and_lies_in_the_range_of_pyproject() -> None:
    # In the environment of `mlflow run`, `-P backend=ray` needs Ray, and the page of a study needs plotly.
    extras = PROJECT["optional-dependencies"]
    required = [*PROJECT["dependencies"], *extras["ray"], *extras["plots"]]
    ranges = {requirement.name: requirement for requirement in map(Requirement, required)}
    assert {pin.name for pin in PINNED_REQUIREMENTS} == set(ranges)
    for pin in PINNED_REQUIREMENTS:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert ranges[pin.name].specifier.contains(specifier.version), pin


def test_the_python_of_conda_is_one_that_pyproject_allows() -> None:
    (python,) = [line for line in CONDA["dependencies"] if str(line).startswith("python=")]
    assert PROJECT["requires-python"] == f">={python.removeprefix('python=')}"


def test_every_entry_point_of_mlproject_calls_a_command_of_ours() -> None:
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert set(points) == {"main", "search", "train", "train-from-run", "resume", "promote"}
    assert points["main"] == points["search"]
    for point in points.values():
        called = re.fullmatch(r"python -m fmnist_search (\w+)((?: --[\w-]+)?(?: \{\w+\})*)", point["command"])
        assert called
        assert called[1] in COMMANDS
        assert re.findall(r"\{(\w+)\}", called[2]) == list(point["parameters"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_docs(command: str) -> None:
    assert f"| `{command}" in (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.parametrize("name", [s.model_fields["name"].default for names in VARIANTS.values() for s in names])
def test_every_sampler_and_pruner_is_in_the_guide(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "studies.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_make_help_names_every_public_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == explained

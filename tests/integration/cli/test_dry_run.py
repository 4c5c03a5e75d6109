"""`search --dry-run`: the study after its overrides, the first recipes, and the time; nothing is started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.conftest import TINY_STUDY, RunCommand


@pytest.mark.parametrize(
    ("budget", "last"),
    [
        ("minutes = 2.0", "about 2 min of training if nothing is pruned; nothing was started"),
        ("total_epochs = 8", r"about \d+ s of training if nothing is pruned; nothing was started"),
        ("patience = 8", "nothing was started"),  # nobody knows how many trials that is
    ],
)
def test_a_dry_run_shows_the_study_its_first_recipes_and_the_time(
    command: RunCommand, tiny: Path, budget: str, last: str
) -> None:
    tiny.write_text(TINY_STUDY.replace("trials = 4", budget, 1))
    outcome = command("search", "tiny.toml", "--dry-run", "--set", "seed=3")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert {'name = "tiny"', "seed = 3", budget} <= set(lines)
    assert "The first recipes" in outcome.stdout
    assert len([line for line in lines if line.startswith("cnn ")]) >= 3
    assert re.fullmatch(last, lines[-1])
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


def test_a_dry_run_for_a_cluster_needs_none(command: RunCommand, tiny: Path) -> None:
    outcome = command("search", "tiny.toml", "--dry-run", "--backend", "ray", "--set", "execution.device=auto")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert {"[execution.ray]", 'address = "auto"'} <= set(outcome.stdout.splitlines())
    assert outcome.stdout.endswith("\nnothing was started\n")  # this machine does not know how long a worker takes
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


def test_a_dry_run_begins_with_the_recipes_of_start(command: RunCommand, tiny: Path) -> None:
    (tiny.parent / "small.toml").write_text("batch_size = 50\n[model]\nfamily = 'cnn'\ndepth = 1\nwidth_1 = 8\n")
    allowed = ["--start", "small.toml", "--start", "preset:lenet", "--set", "start.outside=try"]
    found = command("search", "tiny.toml", "--dry-run", "--json", *allowed).json["recipes"]
    assert [recipe.get("start") for recipe in found] == ["small.toml", "preset:lenet", None, None, None]
    assert (found[0]["recipe"]["model.depth"], found[0]["recipe"]["model.width_1"]) == (1, 8)
    rows = command("search", "tiny.toml", "--dry-run", *allowed).stdout.split("The first recipes")[1].splitlines()
    sources = [row.split()[-1] for row in rows if " M " in row]
    assert sources == ["small.toml", "preset:lenet", "-", "-", "-"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--start", "preset:lenet"], "start.recipes: preset:lenet: "),
        (["--start", "missing.toml"], "missing.toml"),
        (["--start", "study:other"], "holds no study yet"),
        (["--start", "champion"], "start.recipes: model 'fmnist-search' has no champion yet"),
        (["--start", "champion", "--no-tracking"], "start.recipes: the champion is in MLflow"),
        (
            ["--start", "preset:lenet", "--set", "start.outside=try", "--set", "budget.max_mult_adds=100000"],
            "start.recipes: preset:lenet: has 5,435,9",
        ),
    ],
)
def test_a_dry_run_refuses_a_start_that_a_search_refuses(
    command: RunCommand, tiny: Path, options: list[str], reason: str
) -> None:
    dry, real = (command("search", "tiny.toml", *options, *extra) for extra in (["--dry-run"], []))
    assert (dry.exit_code, dry.errors) == (real.exit_code, real.errors) == (2, dry.errors)
    assert reason in dry.errors[0]

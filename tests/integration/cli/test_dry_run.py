"""`search --dry-run`: the study after its overrides, the first recipes, and the time; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import TINY_STUDY, RunCommand


@pytest.mark.parametrize(
    ("budget", "last"),
    [
        ("minutes = 2.0", "about 2 min of training if nothing is pruned; nothing was started"),
        ("total_epochs = 8", "nothing was started"),  # nobody knows how many trials that is
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
    assert lines[-1] == last
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


def test_a_dry_run_for_a_cluster_needs_none(command: RunCommand, tiny: Path) -> None:
    outcome = command("search", "tiny.toml", "--dry-run", "--backend", "ray", "--set", "execution.device=auto")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert {"[execution.ray]", 'address = "auto"'} <= set(outcome.stdout.splitlines())
    assert outcome.stdout.endswith("\nnothing was started\n")  # this machine does not know how long a worker takes
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]

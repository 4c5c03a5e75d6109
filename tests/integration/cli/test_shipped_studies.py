"""Study files that are part of the package: listed, copied, and named by errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import CommandResult, RunCommand

STUDIES = Path(__file__).parents[3] / "studies"


def assert_error(outcome: CommandResult, *expected: str) -> None:
    assert (outcome.exit_code, outcome.stdout, len(outcome.errors)) == (2, "", 1), outcome
    for text in expected:
        assert text in outcome.errors[0]


def test_a_shipped_study_is_copied_into_the_current_folder(command: RunCommand, tmp_path: Path) -> None:
    outcome = command("studies", "copy", "quick", "lenet")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "fmnist-search search quick.toml" in outcome.stdout
    for name in ("quick.toml", "lenet.toml"):
        assert (tmp_path / name).read_bytes() == (STUDIES / name).read_bytes()
    assert "valid; quick" in command("studies", "check", "quick.toml").stdout


def test_without_names_the_shipped_studies_are_listed(command: RunCommand, tmp_path: Path) -> None:
    listed = command("studies", "copy", "--json").json
    assert [row["study"] for row in listed] == sorted(path.stem for path in STUDIES.glob("*.toml"))
    text = command("studies", "copy").stdout
    assert all(row["study"] in text for row in listed)
    assert not list(tmp_path.iterdir())


def test_a_copy_replaces_no_file_without_force(command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text("mine")
    assert_error(command("studies", "copy", "lenet", "quick"), "quick.toml: exists already", "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["quick.toml"]
    assert (tmp_path / "quick.toml").read_text() == "mine"
    assert command("studies", "copy", "quick", "--force").exit_code == 0
    assert (tmp_path / "quick.toml").read_bytes() == (STUDIES / "quick.toml").read_bytes()


def test_an_unknown_shipped_study_is_refused_before_anything_is_written(command: RunCommand, tmp_path: Path) -> None:
    assert_error(command("studies", "copy", "lenet", "quik"), "quik: is no shipped study", "'quick'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["quick", "quick.toml", "studies/quick.toml"])
@pytest.mark.parametrize("arguments", [["search"], ["space"], ["studies", "check"]])
def test_a_missing_file_named_like_a_shipped_study_says_how_to_copy_it(
    name: str, arguments: list[str], command: RunCommand
) -> None:
    assert_error(command(*arguments, name), f"{name}: no such file", "`fmnist-search studies copy quick`")


@pytest.mark.parametrize("arguments", [["status"], ["leaderboard"], ["show", "best"], ["promote"]])
def test_commands_on_an_empty_folder_say_how_to_begin(arguments: list[str], command: RunCommand) -> None:
    assert_error(command(*arguments), "holds no study yet", "`fmnist-search studies copy quick`")

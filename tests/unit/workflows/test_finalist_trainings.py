"""The files that let the trainings of finalists go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.workflows.study.finalist_trainings import FinalistFiles


@pytest.fixture
def files(tmp_path: Path) -> FinalistFiles:
    return FinalistFiles(tmp_path / "checkpoints" / "tiny")


def test_a_training_is_known_by_its_name_and_its_recipe(files: FinalistFiles) -> None:
    recipe = Recipe()
    assert files.number("finalist 1", recipe) == files.number("finalist 1", Recipe())
    others = [files.number("finalist 2", recipe), files.number("finalist 1", recipe.replace({"seed": 7}))]
    assert files.number("finalist 1", recipe) not in others


def test_the_key_of_a_run_is_kept_until_the_training_is_forgotten(files: FinalistFiles) -> None:
    assert files.run_key(1) is None
    files.save_run_key(1, "study/first@1")
    files.save_run_key(2, "study/second@2")
    assert sorted(files.run_keys()) == ["study/first@1", "study/second@2"]
    files.remove(1)
    assert files.run_keys() == ["study/second@2"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_damaged_file_begins_another_run(files: FinalistFiles, tmp_path: Path, content: str) -> None:
    files.save_run_key(1, "study/first@1")
    (path,) = tmp_path.rglob("*.run.json")
    path.write_text(content)
    assert files.run_key(1) is None


def test_nothing_is_left_once_the_champion_is_registered(files: FinalistFiles, tmp_path: Path) -> None:
    files.save_run_key(1, "study/first@1")
    files.save_checkpoint(1, b"state", pytest.fail)
    files.clear()
    assert not list((tmp_path / "checkpoints").iterdir())

"""TOML files and `--set` assignments: what is written is read back, and every mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import parse_assignment, read_recipe, recipe_from_toml, recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from tests.support.strategies import recipes
from tests.unit.config.study_files import CNN_SPACE, HEADER, error_lines


@settings(max_examples=60)
@given(recipes())
def test_recipe_written_as_toml_is_read_back_exactly(recipe: Recipe) -> None:
    again = recipe_from_toml(recipe_to_toml(recipe))
    assert again == recipe
    assert repr(again) == repr(recipe)


def test_recipe_file_is_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('epochs = 2\n[model]\nfamily = "mlp"\nwidth = 32\n')
    recipe = read_recipe(path, {"optimizer.learning_rate": 0.5, "epochs": 3})
    assert (recipe.label, recipe.epochs, recipe.optimizer.learning_rate) == ("mlp 32-32", 3, 0.5)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("[model]\nwidht_1 = 3\n", {}, "model.widht_1: unknown hyperparameter; did you mean 'model.width_1'?"),
        ("epoch = 3\n", {}, "epoch: unknown hyperparameter; did you mean 'epochs'?"),
        ("batch_size = 1\n", {}, "batch_size: 1 is out of bounds; give a whole number at least 2 and at most 60000"),
        ("", {"augmentation.shif": 1}, "augmentation.shif: unknown hyperparameter; did you mean 'augmentation.shift'?"),
        ("epochs = \n", {}, "not valid TOML: Invalid value (at line 1, column 10); correct the file there"),
    ],
)  # fmt: skip
def test_mistake_in_a_recipe_file_is_one_line_with_file_and_key(
    text: str, overrides: dict[str, object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_recipe(path, overrides)
    assert caught.value.lines == (f"{path}: {expected}",)


# ---------------------------------------------------------------------------- files that are not valid


def error_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        StudyConfig.load(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_invalid_toml_is_an_error_with_line_and_column(tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, 'name = "t"\n[budget\n')
    assert "line 2, column 8" in line


def test_missing_file_is_an_error_with_the_files_beside_it(tmp_path: Path) -> None:
    assert error_line(tmp_path / "nowhere" / "study.toml") == "no such file; check the path"
    for name in ("b.toml", "a.toml", "notes.md"):
        (tmp_path / name).write_text("")
    assert error_line(tmp_path / "c.toml") == f"no such file; there are {tmp_path / 'a.toml'}, {tmp_path / 'b.toml'}"


def test_binary_file_and_folder_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(bytes(range(256)))
    assert "cannot be read" in error_line(path)
    assert "cannot be read" in error_line(tmp_path)


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b"\xef\xbb\xbf" + f"{HEADER}{CNN_SPACE}".encode())
    assert StudyConfig.load(tmp_path / "study.toml").budget.trials == 4


# ------------------------------------------------------------------------------------ assignments


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optimizer.learning_rate=0.01", "optimizer.learning_rate", 0.01),
        ("budget.trials=3", "budget.trials", 3),
        ("batch_size=[64, 128]", "batch_size", [64, 128]),
        ("model.dropout={low = 0.1, high = 0.5}", "model.dropout", {"low": 0.1, "high": 0.5}),
        ("optimizer.nesterov=false", "optimizer.nesterov", False),
        ("optimizer.name=sgd", "optimizer.name", "sgd"),
        ('optimizer.name="sgd"', "optimizer.name", "sgd"),
        ("name=my study", "name", "my study"),
        ("question=is a=b?", "question", "is a=b?"),
        (" batch_size = 64", "batch_size", 64),
        ("optimizer.name = sgd", "optimizer.name", "sgd"),
    ],
)
def test_assignment_is_toml_or_else_a_string(text: str, name: str, value: object) -> None:
    parsed = parse_assignment(text)
    assert parsed == (name, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["budget.trials", "", "=3", " = 3"])
def test_invalid_assignment_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="is not an assignment; write --set ") as caught:
        parse_assignment(text)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9" * 5_000, "an integer has thousands of digits"),
        ("[" * 1_000 + "]" * 1_000, "is nested too deeply"),
        ("1\nseed = 2", "is more than one value"),
        ("\udcff", r"a text with '\\udcff' cannot be stored"),
    ],
    ids=["digits", "lists", "two values", "not UTF-8"],
)
def test_an_assignment_that_cannot_be_stored_is_one_line(value: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^--set batch_size: {expected}[^\n]*$"):
        parse_assignment(f"batch_size={value}")

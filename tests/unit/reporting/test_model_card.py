"""Tests of `reporting.model_card`."""

from __future__ import annotations

import dataclasses

import pytest
from markdown_it import MarkdownIt

from fmnist_search.recipe.datasets import DATASETS, Dataset
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry.register import UNDECIDED_NOTE
from fmnist_search.registry.versions import DESCRIPTION_LIMIT, truncate_description
from fmnist_search.reporting.model_card import ModelCard, Selection, selection_from_runs, selection_from_study
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.statistics import wilson

RECIPE = Recipe(epochs=18).replace({"data.validation": 0, "optimizer.learning_rate": 0.0123456})
FINALISTS = (ConfirmedScore(7, Recipe(), (0.91, 0.93)), ConfirmedScore(3, Recipe(), (0.9, 0.9)))


def make_selection(*recipes: Recipe) -> Selection:
    return selection_from_study("small", recipes, FINALISTS[0], FINALISTS)


MODEL_CARD = ModelCard(
    model="mine",
    recipes=(RECIPE,),
    selection=make_selection(RECIPE),
    test=wilson(9_150, 10_000),
    validation_images=10_848,
    dataset_digest="d" * 64,
    split_digest="s" * 32,
    comparison=UNDECIDED_NOTE,
)


def test_a_card_has_all_sections_and_values() -> None:
    text = MODEL_CARD.to_markdown()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Accuracy", "Selection", "Data", "Use", "Licences", "Recipe"]
    assert text.startswith("# cnn 32-64-128\n")
    for expected in (
        "92.00% ± 1.41% (n = 2)",
        "91.50% (95 % Wilson interval 90.94% to 92.03%)",
        "trial 7 92.00% ± 1.41% (n = 2); trial 3 90.00% ± 0.00% (n = 2)",
        "trained again on training and validation images together",
        "60,000 of the 60,000 training images",
        "d" * 64,
        "s" * 32,
        "models:/mine@champion",
        "MIT licence",
        "Zalando SE",
        "| `optimizer.learning_rate` | 0.01235 |",
        UNDECIDED_NOTE,
    ):
        assert expected in text, expected


def test_a_card_of_one_seed_shows_no_deviation_and_without_a_refit_mentions_none() -> None:
    one = ConfirmedScore(7, Recipe(), (0.91,))
    selection = selection_from_study("small", [Recipe()], one, [one])
    text = dataclasses.replace(MODEL_CARD, recipes=(Recipe(),), selection=selection).to_markdown()
    assert "91.00% (n = 1)" in text
    assert "±" not in text
    assert "trained again on" not in text


def test_the_card_of_an_ensemble_names_its_members() -> None:
    members = (RECIPE.replace({"seed": 5}), RECIPE.replace({"seed": 6}))
    text = dataclasses.replace(MODEL_CARD, recipes=members, selection=make_selection(*members)).to_markdown()
    assert text.startswith("# Ensemble of 2, first cnn 32-64-128\n")
    assert "averages the probabilities of 2 networks: cnn 32-64-128, seed 5; cnn 32-64-128, seed 6" in text
    assert "The confirmed accuracy is that of the ensemble" in text
    assert "## Recipe of the first member" in text


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_a_card_describes_its_dataset_and_no_other(dataset: Dataset) -> None:
    text = dataclasses.replace(MODEL_CARD, recipes=(RECIPE.replace({"data.dataset": dataset.name}),)).to_markdown()
    for expected in (dataset.title, dataset.subject, dataset.licence, ", ".join(dataset.classes)):
        assert expected in text, expected
    for other in DATASETS.values():
        if other is not dataset:
            for unexpected in (other.subject, other.licence, ", ".join(other.classes)):
                assert unexpected not in text, unexpected


def test_the_card_of_an_ensemble_of_runs_names_them_and_mentions_no_fresh_seeds() -> None:
    members = (RECIPE.replace({"data.validation": 500}), RECIPE.replace({"data.validation": 500, "seed": 6}))
    members = (members[0], members[1].replace({"model.family": "mlp", "data.train_images": 1000}))
    selection = selection_from_runs([("a" * 32, members[0], 0.9), ("b" * 32, members[1], 0.87)], 0.911)
    text = dataclasses.replace(MODEL_CARD, recipes=members, selection=selection).to_markdown()
    assert f"| `{'a' * 32}` | cnn 32-64-128 | 0 | 90.00% |" in text
    assert f"| `{'b' * 32}` | mlp 256-256 | 6 | 87.00% |" in text
    assert "| 10,848 validation images, which also selected the members' weights | 91.10% |" in text
    assert "Trained on 1,000 or 59,500 of the 60,000" in text
    assert UNDECIDED_NOTE in text
    for unexpected in ("fresh seeds", "finalists", "study", "trained again"):
        assert unexpected not in text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_of_a_single_model_is_not_truncated(family: str) -> None:
    recipe = RECIPE.replace({"model.family": family})
    text = dataclasses.replace(MODEL_CARD, recipes=(recipe,), comparison="x" * 400).to_markdown()
    assert truncate_description(text) == text
    assert len(text) < DESCRIPTION_LIMIT


def test_a_card_shows_the_name_of_a_study_as_text() -> None:
    selection = selection_from_study("__init__ www.a.example", [RECIPE], FINALISTS[0], FINALISTS)
    blocks = MarkdownIt("commonmark").parse(dataclasses.replace(MODEL_CARD, selection=selection).to_markdown())
    (line,) = [block for block in blocks if "From trial" in block.content]
    assert {child.type for child in line.children or []} == {"text"}
    assert "of the study '__init__ www.a.example'." in "".join(child.content for child in line.children or [])

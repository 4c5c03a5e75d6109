"""The card of a registered model, in Markdown: what it is, how good it is, how it was chosen, and what it is not for.

MLflow cuts descriptions, so the figures come first and the long table of the recipe last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.recipe.datasets import Dataset, get_dataset
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.training import Accuracy
from fmnist_search.text import markdown_table


@dataclass(frozen=True)
class Selection:
    """Where a model comes from, in words: how it was chosen, its accuracy on validation, and how that was found."""

    description: str
    accuracy: str
    accuracy_source: str


def selection_from_study(
    study: str, recipes: Sequence[Recipe], confirmed: ConfirmedScore, candidates: Sequence[ConfirmedScore]
) -> Selection:
    """A study's finalist, or an ensemble of them; `candidates` are all finalists, the best mean first."""
    sentences = [
        f"From trial {confirmed.trial} of the study {study!r}. The finalists, trained again from fresh seeds: "
        + "; ".join(f"trial {finalist.trial} {finalist}" for finalist in candidates)
        + ".",
    ]
    if len(recipes) > 1:
        sentences.append(
            "The confirmed figure is the ensemble's own, of trainings that never saw the validation images."
        )
    if not recipes[0].data.validation:
        sentences.append(
            "The model was trained once more, on training and validation images together: its confirmed figure is of "
            "the trainings before that."
        )
    return Selection(" ".join(sentences), str(confirmed), "on n fresh seeds with their deviation")


def selection_from_runs(members: Sequence[tuple[str, Recipe, float]], accuracy: float) -> Selection:
    """An ensemble of runs that somebody named: each member's run, recipe and own accuracy on the validation images."""
    rows = [[f"`{run_id}`", recipe.label, str(recipe.seed), f"{own:.2%}"] for run_id, recipe, own in members]
    told = (
        "An ensemble of runs that were named one by one; nothing was trained for it. Each member has the weights that "
        "its run has kept, those of its best epoch. No member was trained on the validation images, yet its weights, "
        "and perhaps the members themselves, were chosen by them: the ensemble's accuracy there may be a little too "
        "good, that on the test images is not.\n\n" + markdown_table([["run", "network", "seed", "validation"], *rows])
    )
    return Selection(told, f"{accuracy:.2%}", "which also chose the members' weights")


@dataclass(frozen=True)
class ModelCard:
    """What a model card tells. An ensemble has several recipes; `comparison` is the sentence about the champion."""

    model: str
    recipes: tuple[Recipe, ...]
    selection: Selection
    test: Accuracy
    validation_images: int
    dataset_digest: str
    split_digest: str
    comparison: str

    def to_markdown(self) -> str:
        """The whole card."""
        sections = {
            "Figures": self._accuracy_table(),
            "How it was chosen": f"{self.selection.description}\n\n{self.comparison}",
            "Data": self._data_section(),
            "Use": self._usage_section(),
            "Licences": f"The images are {self._dataset.title}, {self._dataset.licence}; fmnist-search, which trained "
            "the model on them, is under the MIT licence.",
            "Recipe" if len(self.recipes) == 1 else "Recipe of the first member": _recipe_table(self.recipes[0]),
        }
        body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
        return f"# {self._title()}\n\n{self._overview()}\n\n{body}\n"

    @property
    def _dataset(self) -> Dataset:
        return get_dataset(self.recipes[0].data.dataset)

    def _title(self) -> str:
        first = self.recipes[0].label
        return first if len(self.recipes) == 1 else f"Ensemble of {len(self.recipes)}, first {first}"

    def _overview(self) -> str:
        dataset = self._dataset
        what = f"A classifier of {dataset.title}: ten classes of {dataset.subject} on grey images of 28 by 28 pixels."
        if len(self.recipes) > 1:
            members = "; ".join(f"{recipe.label}, seed {recipe.seed}" for recipe in self.recipes)
            what += f" It averages the probabilities of {len(self.recipes)} networks: {members}."
        return what

    def _accuracy_table(self) -> str:
        test = self.test
        return markdown_table(
            [
                ["images", "accuracy"],
                [
                    f"{self.validation_images:,} for validation, {self.selection.accuracy_source}",
                    self.selection.accuracy,
                ],
                [
                    f"{test.images:,} for the test, looked at once",
                    f"{test.value:.2%} (95 % interval after Wilson {test.low:.2%} to {test.high:.2%})",
                ],
            ]
        )

    def _data_section(self) -> str:
        counts = sorted({recipe.data.training_count for recipe in self.recipes})
        trained_on = " or ".join(f"{count:,}" for count in counts)
        return (
            f"Trained on {trained_on} of the 60,000 training images; {self.validation_images:,} were held "
            f"back to choose by. SHA-256 of the data `{self.dataset_digest}`; of the held-back images, its first half "
            f"`{self.split_digest}`."
        )

    def _usage_section(self) -> str:
        address = f"models:/{self.model}@champion"
        dataset = self._dataset
        return (
            f"Meant for {dataset.title} and for teaching, comparing and trying out methods on it. Photographs, other "
            f"{dataset.subject} and other backgrounds are not what it has seen; it gives one of ten classes for "
            "whatever it is shown, and its probabilities are not calibrated.\n\n"
            "Takes float32 pixels (N, 28, 28) of 0..255, light on dark ground, and gives probabilities (N, 10) of the "
            f"classes {', '.join(dataset.classes)}, in this order.\n\n"
            f"    model = mlflow.pyfunc.load_model({address!r}); model.predict(pixels)\n"
            f'    mlflow models serve -m "{address}" --env-manager local'
        )


def _recipe_table(recipe: Recipe) -> str:
    rows = [[f"`{name}`", format_value_short(value)] for name, value in recipe.to_flat_dict().items()]
    return markdown_table([["hyperparameter", "value"], *rows])

"""The card of a registered model, in Markdown: its accuracy, selection, data, intended use, licences and recipe.

MLflow truncates long descriptions, so the accuracy comes first and the table of the recipe last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.recipe.datasets import Dataset, get_dataset
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.training import Accuracy
from fmnist_search.text import escape_markdown, markdown_table, space_out_tables


@dataclass(frozen=True)
class Selection:
    """How a model was selected, as text: a description, its validation accuracy, and how that was measured."""

    description: str
    accuracy: str
    accuracy_source: str


def selection_from_study(
    study: str, recipes: Sequence[Recipe], confirmed: ConfirmedScore, candidates: Sequence[ConfirmedScore]
) -> Selection:
    """Return the selection of a study's finalist, or of an ensemble of finalists.

    `recipes` are the model's members; `candidates` are all finalists, the one with the best mean first.
    """
    sentences = [
        f"From trial {confirmed.trial} of the study '{escape_markdown(study)}'. "
        "The finalists, trained again from fresh seeds: "
        + "; ".join(f"trial {finalist.trial} {finalist}" for finalist in candidates)
        + ".",
    ]
    if len(recipes) > 1:
        sentences.append(
            "The confirmed accuracy is that of the ensemble, from trainings without the validation images."
        )
    if not recipes[0].data.validation:
        sentences.append(
            "The model was then trained again on training and validation images together; the confirmed accuracy is "
            "from the trainings before that."
        )
    return Selection(" ".join(sentences), str(confirmed), "mean and standard deviation over n fresh seeds")


def selection_from_runs(members: Sequence[tuple[str, Recipe, float]], accuracy: float) -> Selection:
    """Return the selection of an ensemble of given runs.

    `members` are run ids, recipes and validation accuracies in 0..1; `accuracy` is the ensemble's.
    """
    rows = [
        [f"`{run_id}`", recipe.label, str(recipe.seed), f"{member_accuracy:.2%}"]
        for run_id, recipe, member_accuracy in members
    ]
    description = (
        "An ensemble of runs that were given by their ids; no network was trained for it. Each member has the stored "
        "weights of its run, those of the best epoch. No member was trained on the validation images, but they were "
        "used to select the weights, and perhaps the members: the ensemble's validation accuracy may be slightly too "
        "high. Its test accuracy is not affected.\n\n"
        + markdown_table([["run", "network", "seed", "validation accuracy"], *rows])
    )
    return Selection(description, f"{accuracy:.2%}", "which also selected the members' weights")


def selection_from_training(run_id: str, accuracy: float) -> Selection:
    """Return the selection of a single training, whose kept weights have this validation accuracy in 0..1."""
    description = (
        f"The kept weights of the training `{run_id}`; no study has selected its recipe. It was not trained on the "
        "validation images, but they were used to select the epoch, and perhaps the recipe: its validation accuracy "
        "may be slightly too high. Its test accuracy is not affected."
    )
    return Selection(description, f"{accuracy:.2%}", "which also selected the epoch")


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    `model` is the registered name. An ensemble has one recipe for each member. `comparison` is a sentence that compares
    the model with the champion.
    """

    model: str
    recipes: tuple[Recipe, ...]
    selection: Selection
    test: Accuracy
    validation_images: int
    dataset_digest: str
    split_digest: str
    comparison: str

    def to_markdown(self) -> str:
        """Return the card as Markdown."""
        sections = {
            "Accuracy": self._accuracy_table(),
            "Selection": f"{self.selection.description}\n\n{self.comparison}",
            "Data": self._data_section(),
            "Use": self._usage_section(),
            "Licences": f"Images: {self._dataset.title}, {self._dataset.licence}. fmnist-search, which trained the "
            "model on them, is under the MIT licence.",
            "Recipe" if len(self.recipes) == 1 else "Recipe of the first member": _recipe_table(self.recipes[0]),
        }
        body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
        return f"# {self._title()}\n\n{self._overview()}\n\n{body}\n"

    def to_description(self) -> str:
        """Return the card as the description of a version: a list of versions shows only how it begins."""
        card = self.to_markdown().removeprefix(f"# {self._title()}\n\n")
        summary = f"{self._title()}: {self.test.value:.2%} on the test images, {self.selection.accuracy} on validation."
        return space_out_tables(f"{summary}\n\n{card}")

    @property
    def _dataset(self) -> Dataset:
        return get_dataset(self.recipes[0].data.dataset)

    def _title(self) -> str:
        first = self.recipes[0].label
        return first if len(self.recipes) == 1 else f"Ensemble of {len(self.recipes)}, first {first}"

    def _overview(self) -> str:
        dataset = self._dataset
        classes = f"{len(dataset.classes)} classes of {dataset.subject}"
        text = f"A classifier for {dataset.title}: {classes} on grey images of 28 by 28 pixels."
        if len(self.recipes) > 1:
            members = "; ".join(f"{recipe.label}, seed {recipe.seed}" for recipe in self.recipes)
            text += f" It averages the probabilities of {len(self.recipes)} networks: {members}."
        return text

    def _accuracy_table(self) -> str:
        test = self.test
        return markdown_table(
            [
                ["images", "accuracy"],
                [
                    f"{self.validation_images:,} validation images, {self.selection.accuracy_source}",
                    self.selection.accuracy,
                ],
                [
                    f"{test.images:,} test images, measured once",
                    f"{test.value:.2%} (95 % Wilson interval {test.low:.2%} to {test.high:.2%})"
                    + ("" if test.loss is None else f", mean cross-entropy {test.loss:.4f}"),
                ],
            ]
        )

    def _data_section(self) -> str:
        counts = sorted({recipe.data.training_count for recipe in self.recipes})
        trained_on = " or ".join(f"{count:,}" for count in counts)
        return (
            f"Trained on {trained_on} of the {self._dataset.training_images:,} training images; "
            f"{self.validation_images:,} of them were the validation images of the selection. SHA-256 of the data: "
            f"`{self.dataset_digest}`; first half of the SHA-256 of the validation images: `{self.split_digest}`."
        )

    def _usage_section(self) -> str:
        model_uri = f"models:/{self.model}@champion"
        dataset = self._dataset
        count = len(dataset.classes)
        return (
            f"Intended for {dataset.title}: to teach, compare and try out methods. The model was not trained on "
            f"photographs, other {dataset.subject} or other backgrounds. It assigns one of {count} classes to any "
            "input. Its probabilities are not calibrated.\n\n"
            "Input: float32 pixels (N, 28, 28) in 0..255, light on a dark background. Output: "
            f"probabilities (N, {count}) of the classes {', '.join(dataset.classes)}, in this order.\n\n"
            f"    model = mlflow.pyfunc.load_model({model_uri!r}); model.predict(pixels)\n"
            f'    mlflow models serve -m "{model_uri}" --env-manager local'
        )


def _recipe_table(recipe: Recipe) -> str:
    rows = [[f"`{name}`", format_value_short(value)] for name, value in recipe.to_flat_dict().items()]
    return markdown_table([["hyperparameter", "value"], *rows])

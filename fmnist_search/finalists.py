"""From the best trials of a search to one model: confirm on fresh seeds, choose, refit, test once.

The best of many noisy trials is better on paper than in truth. So the best recipes are trained again from seeds that
no search has seen, with an annealed schedule, and the choice falls on the best mean. Knows no MLflow: whoever calls
brings `train`, which runs a recipe and keeps its record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmnist_search.config import Finalists
from fmnist_search.data import Source, read_test_set
from fmnist_search.errors import UserError
from fmnist_search.evaluate import evaluate, wilson
from fmnist_search.models import Classifier, build
from fmnist_search.recipe import Recipe
from fmnist_search.results import Accuracy, Confirmed, State, TrialResult, TrialRow

Train = Callable[[Sequence[tuple[str, Recipe]]], Sequence[TrialResult]]
"""Runs recipes, each under a name, and keeps the record; an interrupted one comes back as such."""


@dataclass(frozen=True)
class Chosen:
    """The winner of the finalists: its confirmed figures, the recipe and the weights of the model itself."""

    confirmed: Confirmed
    recipe: Recipe
    classifier: Classifier


def find_champion(leaders: Sequence[TrialRow], settings: Finalists, seed: int, train: Train) -> Chosen | None:
    """Confirm the leaders, choose the best mean, and give its model; None when it was interrupted.

    Raises:
        UserError: none of the finalists could be trained.
    """
    seeds = fresh_seeds(seed, settings.seeds)
    finals = [final_recipe(row.recipe, settings) for row in leaders]
    trained = train(
        [
            (f"finalist {row.number:03d} seed {number} {recipe.label}", recipe.replace({"seed": fresh}))
            for row, recipe in zip(leaders, finals, strict=True)
            for number, fresh in enumerate(seeds, start=1)
        ]
    )
    if any(result.state is State.INTERRUPTED for result in trained):
        return None
    confirmations: list[tuple[Confirmed, TrialResult]] = []
    for place, (row, recipe) in enumerate(zip(leaders, finals, strict=True)):
        results = trained[place * len(seeds) : (place + 1) * len(seeds)]
        accuracies = tuple(result.value for result in results if result.value is not None)
        if len(accuracies) == len(results) and all(result.state is State.COMPLETED for result in results):
            confirmations.append((Confirmed(row.number, recipe, accuracies), results[0]))
    if not confirmations:
        raise UserError("finalists: every one of them failed; see the reasons in their runs", exit_code=4)
    confirmed, first = max(confirmations, key=lambda pair: pair[0].mean)
    recipe = confirmed.recipe.replace({"seed": seeds[0]})
    if settings.refit == "none":
        return Chosen(confirmed, recipe, _classifier(recipe, first))
    recipe = recipe.replace({"data.validation": 0, "data.train_images": 0})
    (refitted,) = train([(f"champion {confirmed.trial:03d} {recipe.label}", recipe)])
    if refitted.state is State.INTERRUPTED:
        return None
    if refitted.state is not State.COMPLETED:
        raise UserError(f"finalists: the chosen recipe failed on all images ({refitted.reason})", exit_code=4)
    return Chosen(confirmed, recipe, _classifier(recipe, refitted))


def final_recipe(recipe: Recipe, settings: Finalists) -> Recipe:
    """A recipe of the search as its finalists train it: annealed, longer, and judged by the last weights."""
    changes: dict[str, object] = {"schedule.name": settings.schedule, "epochs": settings.epochs}
    if settings.images == "all":
        changes["data.train_images"] = 0
    return recipe.replace(changes)


def fresh_seeds(study_seed: int, count: int) -> list[int]:
    """Seeds that no trial of the study has used, the same for every finalist."""
    digests = [hashlib.sha256(f"finalist/{study_seed}/{number}".encode()).digest() for number in range(count)]
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def fingerprint(leaders: Sequence[TrialRow], settings: Finalists) -> str:
    """Names a choice: where it is the same, training the finalists again would tell nothing new."""
    parts = [settings.model_dump_json(), *(row.recipe.key() for row in leaders)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def test_once(classifier: Classifier, dataset: str, source: Source) -> Accuracy:
    """The chosen weights on the test images, in float32 on the CPU as the exported model computes."""
    confusion = evaluate(classifier.eval(), read_test_set(dataset, source)).confusion
    return wilson(sum(row[label] for label, row in enumerate(confusion)), sum(map(sum, confusion)))


def _classifier(recipe: Recipe, result: TrialResult) -> Classifier:
    """The network with the weights of the last epoch: mean and deviation are among them."""
    assert result.last_weights is not None
    classifier = build(recipe.model)
    classifier.load_state_dict(result.last_weights)
    return classifier.eval()

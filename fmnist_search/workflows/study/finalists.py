"""From the best trials of a search to one model: confirm on fresh seeds, choose, refit, test once.

The best of many noisy trials is better on paper than in truth. So the best recipes are trained again from seeds that
no search has seen, with an annealed schedule, and the choice falls on the best mean, or on several of the best as an
ensemble. Knows no MLflow: whoever calls brings `train`, which runs a recipe and keeps its record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import read_test_set
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.statistics import wilson
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Accuracy, TrialResult, TrialState
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import predict_logits

TrainRecipes = Callable[[Sequence[tuple[str, Recipe]]], Sequence[TrialResult]]
"""Runs recipes, each under a name, and keeps the record; an interrupted one comes back as such."""


@dataclass(frozen=True)
class SelectedModel:
    """The winner of the finalists: its confirmed figures, and the model itself with its members' recipes.

    `correctness` are the validation images that its confirming trainings got right, never those of a refit;
    `candidates` are all finalists with their figures, the best mean first. An ensemble's confirmed figures are the
    ensemble's own.
    """

    confirmed: ConfirmedScore
    recipes: tuple[Recipe, ...]
    classifier: Classifier | Ensemble
    correctness: CorrectnessRecord
    candidates: tuple[ConfirmedScore, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model, or of an ensemble's first member."""
        return self.recipes[0]


@dataclass(frozen=True)
class _ConfirmedFinalist:
    """A finalist that completed from every seed."""

    confirmed: ConfirmedScore
    results: tuple[TrialResult, ...]


def select_model(
    leaders: Sequence[TrialRecord], settings: Finalists, seed: int, train: TrainRecipes, images: Images
) -> SelectedModel | None:
    """Confirm the leaders, choose the best mean or the ensemble of the best, and give its model.

    None when it was interrupted. `images` are the study's: every finalist holds the same back for validation.

    Raises:
        UserError: too few recipes for the ensemble, or too few of them could be trained.
    """
    _check_ensemble_size(settings, len(leaders), exit_code=2)
    seeds = confirmation_seeds(seed, settings.seeds)
    confirmations = _confirm_leaders(leaders, settings, seeds, train)
    if confirmations is None:
        return None
    if not confirmations:
        raise UserError("finalists: every one of them failed; see the reasons in their runs", exit_code=4)
    _check_ensemble_size(settings, len(confirmations), exit_code=4)
    ranked = sorted(confirmations, key=lambda confirmation: -confirmation.confirmed.mean)
    teams = ensemble_assignments(max(settings.ensemble, 1), len(ranked), len(seeds))
    right = np.stack(
        [
            _correctness(_combined([_member_classifier(ranked, seat) for seat in team]), images.validation)
            for team in teams
        ]
    )
    hits = CorrectnessRecord(right, images.digest, images.split_digest)
    confirmed = ranked[0].confirmed
    if settings.ensemble:
        confirmed = ConfirmedScore(confirmed.trial, confirmed.recipe, hits.accuracies)
    candidates = tuple(confirmation.confirmed for confirmation in ranked)
    recipes = [candidates[place].recipe.replace({"seed": seeds[number]}) for place, number in teams[0]]
    if settings.refit == "none":
        classifiers = [_member_classifier(ranked, seat) for seat in teams[0]]
    else:
        recipes = [recipe.replace({"data.validation": 0, "data.train_images": 0}) for recipe in recipes]
        results = train(
            [
                (f"champion {candidates[place].trial:03d} seed {number + 1} {recipe.label}", recipe)
                for (place, number), recipe in zip(teams[0], recipes, strict=True)
            ]
        )
        if any(result.state is TrialState.INTERRUPTED for result in results):
            return None
        if failed := [result.reason for result in results if result.state is not TrialState.COMPLETED]:
            raise UserError(f"finalists: the chosen recipe failed on all images ({failed[0]})", exit_code=4)
        classifiers = [trained_classifier(recipe, result) for recipe, result in zip(recipes, results, strict=True)]
    return SelectedModel(confirmed, tuple(recipes), _combined(classifiers), hits, candidates)


def _confirm_leaders(
    leaders: Sequence[TrialRecord], settings: Finalists, seeds: Sequence[int], train: TrainRecipes
) -> list[_ConfirmedFinalist] | None:
    """The leaders that completed from every fresh seed, in their order; None when it was interrupted."""
    finals = [finalist_recipe(row.recipe, settings) for row in leaders]
    trained = train(
        [
            (f"finalist {row.number:03d} seed {number} {recipe.label}", recipe.replace({"seed": fresh}))
            for row, recipe in zip(leaders, finals, strict=True)
            for number, fresh in enumerate(seeds, start=1)
        ]
    )
    if any(result.state is TrialState.INTERRUPTED for result in trained):
        return None
    confirmations = []
    for place, (row, recipe) in enumerate(zip(leaders, finals, strict=True)):
        results = tuple(trained[place * len(seeds) : (place + 1) * len(seeds)])
        accuracies = tuple(result.value for result in results if result.value is not None)
        if len(accuracies) == len(results) and all(result.state is TrialState.COMPLETED for result in results):
            confirmations.append(_ConfirmedFinalist(ConfirmedScore(row.number, recipe, accuracies), results))
    return confirmations


def _check_ensemble_size(settings: Finalists, recipe_count: int, exit_code: int) -> None:
    if settings.ensemble > recipe_count * settings.seeds:
        raise UserError(
            f"finalists.ensemble: {settings.ensemble} members are more than the {recipe_count * settings.seeds} "
            f"finalists "
            f"there are, {recipe_count} distinct recipes with {settings.seeds} seeds each; take fewer members or "
            f"more seeds",
            exit_code=exit_code,
        )


def ensemble_assignments(member_count: int, recipe_count: int, seed_count: int) -> list[list[tuple[int, int]]]:
    """Which trainings make a model of so many members, as (place of the recipe, number of the seed).

    The members are dealt out over the recipes, the best first; once every recipe has one, the next round takes
    another seed. There are as many such teams as the seeds allow, with no training in two of them, so that the teams'
    accuracies tell how much seeds matter. The first team is the model.
    """
    rounds = math.ceil(member_count / recipe_count)
    return [
        [(member % recipe_count, team * rounds + member // recipe_count) for member in range(member_count)]
        for team in range(seed_count // rounds)
    ]


def _member_classifier(ranked: Sequence[_ConfirmedFinalist], assignment: tuple[int, int]) -> Classifier:
    place, number = assignment
    return trained_classifier(ranked[place].confirmed.recipe, ranked[place].results[number])


def _combined(members: Sequence[Classifier]) -> Classifier | Ensemble:
    """One model: the only member itself, or the ensemble of several."""
    return members[0] if len(members) == 1 else Ensemble(members).eval()


def _correctness(model: Classifier | Ensemble, images: LabelledImages) -> npt.NDArray[np.bool_]:
    """Which of the images a model gets right, in float32; the layout halves the time that a CPU takes."""
    model = model.to(images.pixels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    predicted = predict_logits(model, images.pixels).argmax(1)
    right: npt.NDArray[np.bool_] = (predicted == images.labels).cpu().numpy()
    return right


def finalist_recipe(recipe: Recipe, settings: Finalists) -> Recipe:
    """A recipe of the search as its finalists train it: annealed, longer, to the end, judged by the last weights."""
    changes: dict[str, object] = {"schedule.name": settings.schedule, "epochs": settings.epochs, "patience": 0}
    if settings.images == "all":
        changes["data.train_images"] = 0
    return recipe.replace(changes)


def confirmation_seeds(study_seed: int, count: int) -> list[int]:
    """Seeds that no trial of the study has used, the same for every finalist."""
    digests = [hashlib.sha256(f"finalist/{study_seed}/{number}".encode()).digest() for number in range(count)]
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def selection_key(leaders: Sequence[TrialRecord], settings: Finalists) -> str:
    """Names a choice: where it is the same, training the finalists again would tell nothing new."""
    parts = [settings.model_dump_json(), *(row.recipe.seed_independent_key() for row in leaders)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class TestEvaluation:
    """The one look at the test images: probabilities (N, classes) of each of them."""

    probabilities: Tensor
    images: LabelledImages

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Which of them were classified right."""
        right: npt.NDArray[np.bool_] = (self.probabilities.argmax(1) == self.images.labels).numpy()
        return right

    @property
    def accuracy(self) -> Accuracy:
        """The share of those, with its interval."""
        return wilson(int(self.correct.sum()), len(self.images))


def evaluate_on_test_set(classifier: Classifier | Ensemble, dataset: str, source: DataSource) -> TestEvaluation:
    """The chosen weights on the test images, in float32 on the CPU as the exported model computes."""
    images = read_test_set(dataset, source)
    return TestEvaluation(predict_logits(classifier.eval(), images.pixels).softmax(1), images)


def trained_classifier(recipe: Recipe, result: TrialResult) -> Classifier:
    """The network with the weights of the last epoch: mean and deviation are among them."""
    assert result.last_weights is not None
    return classifier_from_weights(recipe, result.last_weights)

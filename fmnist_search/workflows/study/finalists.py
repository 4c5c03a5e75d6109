"""The selection of a model among the best recipes of a search.

The best of many noisy trials looks better than it is. So the best recipes are trained again from seeds that no trial
has used, with an annealed schedule. They are ranked by their mean accuracy, and the best one, or an ensemble of the
best ones, becomes the model. Nothing here writes to MLflow: the caller passes `train`, which records the trainings.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fmnist_search.config.sections import Finalists
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialResult, TrialState
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import predict_logits

TrainRecipes = Callable[[Sequence[tuple[str, Recipe]]], Sequence[TrialResult]]
"""Trains recipes, each with a name, and returns their results; interrupted ones are among these."""


@dataclass(frozen=True)
class SelectedModel:
    """The selected model: its confirmed score, and the classifier with its members' recipes.

    `seeds` are those of the confirming trainings, and `correctness` records which validation images these classified
    correctly, never a refit's; `candidates` are the scores of all finalists, the best mean first. The confirmed score
    of an ensemble is that of the ensemble itself.
    """

    confirmed: ConfirmedScore
    recipes: tuple[Recipe, ...]
    classifier: Classifier | Ensemble
    correctness: CorrectnessRecord
    candidates: tuple[ConfirmedScore, ...]
    seeds: tuple[int, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model, or of an ensemble's first member."""
        return self.recipes[0]


@dataclass(frozen=True)
class _Finalist:
    """A recipe that completed from every seed."""

    score: ConfirmedScore
    results: tuple[TrialResult, ...]

    def classifier(self, seed_index: int) -> Classifier:
        """Return the network that was trained from this seed."""
        return _trained_classifier(self.score.recipe, self.results[seed_index])


class Assignment(NamedTuple):
    """A confirming training as a member of a model: the finalist's rank and the index of the seed, both from 0."""

    rank: int
    seed_index: int


def select_model(
    leaders: Sequence[TrialRecord],
    settings: Finalists,
    seed: int,
    train: TrainRecipes,
    images: Images,
    used_seeds: Collection[int] = (),
) -> SelectedModel | None:
    """Confirm the leaders, and return the model of the best mean or the ensemble of the best; None if interrupted.

    `images` are those of the study: every finalist holds the same images back for validation. `used_seeds` are seeds
    that earlier promotions have used.

    Raises:
        UserError: if there are too few recipes for the ensemble, or too few of their trainings complete.
    """
    _check_ensemble_size(settings, len(leaders), exit_code=2)
    seeds = confirmation_seeds(seed, settings.seeds, used_seeds)
    finalists = _confirm(leaders, settings, seeds, train)
    if finalists is None:
        return None
    if not finalists:
        raise UserError("finalists: every one of them failed; see the reasons in their runs", exit_code=4)
    _check_ensemble_size(settings, len(finalists), exit_code=4)
    ranked = _rank(finalists)
    models = assign(max(settings.ensemble, 1), len(ranked), len(seeds))
    correctness = _score(ranked, models, images)
    recipes = [ranked[rank].score.recipe.replace({"seed": seeds[index]}) for rank, index in models[0]]
    classifiers: list[Classifier] | None
    if settings.refit == "everything":
        recipes = [recipe.replace({"data.validation": 0, "data.train_images": 0}) for recipe in recipes]
        classifiers = _refit(ranked, models[0], recipes, train)
    else:
        classifiers = [ranked[rank].classifier(index) for rank, index in models[0]]
    if classifiers is None:
        return None
    confirmed = ranked[0].score
    if settings.ensemble:
        confirmed = ConfirmedScore(confirmed.trial, confirmed.recipe, correctness.accuracies)
    candidates = tuple(finalist.score for finalist in ranked)
    return SelectedModel(confirmed, tuple(recipes), _combine(classifiers), correctness, candidates, tuple(seeds))


def _confirm(
    leaders: Sequence[TrialRecord], settings: Finalists, seeds: Sequence[int], train: TrainRecipes
) -> list[_Finalist] | None:
    """Train the leaders from every seed; return those that completed, in their order, or None if interrupted."""
    recipes = [finalist_recipe(leader.recipe, settings) for leader in leaders]
    results = train(
        [
            (f"finalist {leader.number:03d} seed {number} {recipe.label}", recipe.replace({"seed": seed}))
            for leader, recipe in zip(leaders, recipes, strict=True)
            for number, seed in enumerate(seeds, start=1)
        ]
    )
    if any(result.state is TrialState.INTERRUPTED for result in results):
        return None
    finalists = []
    for position, (leader, recipe) in enumerate(zip(leaders, recipes, strict=True)):
        own = tuple(results[position * len(seeds) : (position + 1) * len(seeds)])
        accuracies = tuple(result.value for result in own if result.value is not None)
        if len(accuracies) == len(own) and all(result.state is TrialState.COMPLETED for result in own):
            finalists.append(_Finalist(ConfirmedScore(leader.number, recipe, accuracies), own))
    return finalists


def _rank(finalists: Sequence[_Finalist]) -> list[_Finalist]:
    """Return the finalists, the best mean accuracy first."""
    return sorted(finalists, key=lambda finalist: -finalist.score.mean)


def assign(member_count: int, recipe_count: int, seed_count: int) -> list[list[Assignment]]:
    """Return the models that the confirming trainings make, each with its members; the first is the selected one.

    Members are taken from the recipes in turn, the best first; after all recipes, a further round takes the next seed.
    No training is in two models, and there are as many models as the seeds allow, so that the accuracies of the models
    show how much seeds matter.
    """
    rounds = math.ceil(member_count / recipe_count)
    return [
        [Assignment(member % recipe_count, model * rounds + member // recipe_count) for member in range(member_count)]
        for model in range(seed_count // rounds)
    ]


def _score(ranked: Sequence[_Finalist], models: Sequence[Sequence[Assignment]], images: Images) -> CorrectnessRecord:
    """Return which validation images each model classifies correctly."""
    correct = [
        _correctness(_combine([ranked[rank].classifier(index) for rank, index in members]), images.validation)
        for members in models
    ]
    return CorrectnessRecord(np.stack(correct), images.digest, images.split_digest)


def _refit(
    ranked: Sequence[_Finalist], members: Sequence[Assignment], recipes: Sequence[Recipe], train: TrainRecipes
) -> list[Classifier] | None:
    """Train the members on all images; return their networks, or None if interrupted."""
    results = train(
        [
            (f"refit {ranked[rank].score.trial:03d} seed {index + 1} {recipe.label}", recipe)
            for (rank, index), recipe in zip(members, recipes, strict=True)
        ]
    )
    if any(result.state is TrialState.INTERRUPTED for result in results):
        return None
    if reasons := [result.reason for result in results if result.state is not TrialState.COMPLETED]:
        raise UserError(f"finalists: the chosen recipe failed on all images ({reasons[0]})", exit_code=4)
    return [_trained_classifier(recipe, result) for recipe, result in zip(recipes, results, strict=True)]


def _check_ensemble_size(settings: Finalists, recipe_count: int, exit_code: int) -> None:
    available = recipe_count * settings.seeds
    if settings.ensemble > available:
        raise UserError(
            f"finalists.ensemble: {settings.ensemble} members are more than the {available} finalists there are, "
            f"{recipe_count} distinct recipes with {settings.seeds} seeds each; take fewer members or more seeds",
            exit_code=exit_code,
        )


def _combine(members: Sequence[Classifier]) -> Classifier | Ensemble:
    """Return the only member, or the ensemble of several."""
    return members[0] if len(members) == 1 else Ensemble(members).eval()


def _correctness(model: Classifier | Ensemble, images: LabelledImages) -> npt.NDArray[np.bool_]:
    """Return which images (N,) the model classifies correctly, in float32; channels last halves the time on a CPU."""
    model = model.to(images.pixels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    predicted = predict_logits(model, images.pixels).argmax(1)
    correct: npt.NDArray[np.bool_] = (predicted == images.labels).cpu().numpy()
    return correct


def _trained_classifier(recipe: Recipe, result: TrialResult) -> Classifier:
    """Return the network with the weights of the last epoch, which hold mean and standard deviation of the images."""
    assert result.last_weights is not None
    return classifier_from_weights(recipe, result.last_weights)


def finalist_recipe(recipe: Recipe, settings: Finalists) -> Recipe:
    """Return a recipe of the search as finalists train it: longer, annealed, and to the last epoch."""
    changes: dict[str, object] = {"schedule.name": settings.schedule, "epochs": settings.epochs, "patience": 0}
    if settings.images == "all":
        changes["data.train_images"] = 0
    return recipe.replace(changes)


def confirmation_seeds(study_seed: int, count: int, used: Collection[int] = ()) -> list[int]:
    """Return seeds that no trial of the study has used, nor any in `used`; they are the same for every finalist."""
    digests = (hashlib.sha256(f"finalist/{study_seed}/{number}".encode()).digest() for number in itertools.count())
    seeds = (int.from_bytes(digest[:4], "big") >> 1 for digest in digests)
    return list(itertools.islice((seed for seed in seeds if seed not in used), count))


def selection_key(leaders: Sequence[TrialRecord], settings: Finalists) -> str:
    """Return a key of a selection: with the same key, training the finalists again would give the same model."""
    parts = [settings.model_dump_json(), *(leader.recipe.seed_independent_key() for leader in leaders)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

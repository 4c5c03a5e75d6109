"""Finalists: the best mean over fresh seeds is selected, and the model has the weights that were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import build
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Decision, TrialResult, TrialState, never_stop
from fmnist_search.search.suggest import trial_seed
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.study.finalists import (
    assign,
    confirmation_seeds,
    finalist_recipe,
    select_model,
    selection_key,
)
from fmnist_search.workflows.testing import evaluate_on_test_set

DATA_CONFIG = Data(train_images=500, validation=500)
TINY_RECIPE = Recipe(data=DATA_CONFIG, epochs=1).replace(
    {"model.family": "mlp", "model.depth": 1, "model.width": 16, "batch_size": 100, "seed": 5}
)
GOOD_RECIPE = TINY_RECIPE.replace({"optimizer.learning_rate": 1e-2})
SLOW_RECIPE = TINY_RECIPE.replace({"optimizer.learning_rate": 1e-3})
UNTRAINED_RECIPE = TINY_RECIPE.replace({"optimizer.learning_rate": 1e-6})
# More parameters than are allowed: refused before it is built.
OVERSIZED_RECIPE = TINY_RECIPE.replace({"model.depth": 8, "model.width": 8192})
SETTINGS = Finalists(seeds=2, epochs=2, images="slice", refit="none")
SEED = 3


def make_leaders(*recipes: Recipe) -> list[TrialRecord]:
    """Return records of the best trials of a search, the best first, with invented values."""
    return [
        TrialRecord(number, TrialState.COMPLETED, 0.9 - number / 100, 1, recipe, 1.0)
        for number, recipe in enumerate(recipes)
    ]


class RecordingTrainer:
    """Trains recipes and records the results; interrupts training number `interrupt_at` after its first epoch."""

    def __init__(self, images: Images, execution: Execution):
        self.images = images
        self.execution = execution
        self.interrupt_at: int | None = None
        self.job_names: list[str] = []
        self.recipes: list[Recipe] = []
        self.results: list[TrialResult] = []

    def __call__(self, trainings: Sequence[tuple[str, Recipe]]) -> list[TrialResult]:
        return train_sequentially(self.train_one, trainings)

    def train_one(self, name: str, recipe: Recipe) -> TrialResult:
        stop = len(self.results) == self.interrupt_at
        result = run_trial(recipe, self.images, self.execution, (lambda _: Decision.INTERRUPT) if stop else never_stop)
        self.job_names.append(name)
        self.recipes.append(recipe)
        self.results.append(result)
        return result


def train_sequentially(
    train: Callable[[str, Recipe], TrialResult], trainings: Sequence[tuple[str, Recipe]]
) -> list[TrialResult]:
    """Train recipes as one worker does: after an interruption no further training starts."""
    results: list[TrialResult] = []
    for name, recipe in trainings:
        if any(result.state is TrialState.INTERRUPTED for result in results):
            results.append(TrialResult(TrialState.INTERRUPTED, (), 0.0))
        else:
            results.append(train(name, recipe))
    return results


@pytest.fixture
def train(images: Images, execution: Execution) -> RecordingTrainer:
    return RecordingTrainer(images, execution)


# --------------------------------------------------------------------------------------- selection


def test_the_recipe_with_the_best_mean_is_selected_whatever_its_rank_in_the_search(
    train: RecordingTrainer, images: Images
) -> None:
    selected = select_model(make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE, SLOW_RECIPE), SETTINGS, SEED, train, images)
    assert selected is not None
    assert selected.confirmed.trial == 1
    assert selected.confirmed.recipe == finalist_recipe(GOOD_RECIPE, SETTINGS)
    values = [result.value for result in train.results]
    assert selected.confirmed.accuracies == tuple(values[2:4])
    means = [sum(value or 0 for value in values[at : at + 2]) / 2 for at in (0, 2, 4)]
    assert selected.confirmed.mean == pytest.approx(max(means))
    assert len(values) == 6


def test_a_recipe_with_one_good_seed_is_not_selected(train: RecordingTrainer, images: Images) -> None:
    def one_lucky_seed(name: str, recipe: Recipe) -> TrialResult:
        return train.train_one(name, UNTRAINED_RECIPE if name.startswith("finalist 000 seed 2") else recipe)

    steady_recipe = TINY_RECIPE.replace({"optimizer.learning_rate": 5e-3})
    selected = select_model(
        make_leaders(GOOD_RECIPE, steady_recipe), SETTINGS, SEED, partial(train_sequentially, one_lucky_seed), images
    )
    assert selected is not None
    assert selected.confirmed.trial == 1
    values = [result.value or 0 for result in train.results]
    assert max(values[:2]) > max(values[2:])


def test_every_finalist_trains_from_the_same_fresh_seeds(train: RecordingTrainer, images: Images) -> None:
    select_model(make_leaders(GOOD_RECIPE, SLOW_RECIPE), SETTINGS, SEED, train, images)
    seeds = [recipe.seed for recipe in train.recipes]
    assert seeds == confirmation_seeds(SEED, 2) * 2
    assert [recipe.seed_independent_key() for recipe in train.recipes] == [
        finalist_recipe(recipe, SETTINGS).seed_independent_key()
        for recipe in (GOOD_RECIPE, GOOD_RECIPE, SLOW_RECIPE, SLOW_RECIPE)
    ]


def test_the_names_of_the_trainings_have_trial_seed_and_network(train: RecordingTrainer, images: Images) -> None:
    select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert train.job_names == ["finalist 000 seed 1 mlp 16", "finalist 000 seed 2 mlp 16"]


def test_confirmation_seeds_are_distinct_and_not_those_of_trials() -> None:
    for study_seed in range(20):
        fresh = confirmation_seeds(study_seed, 10)
        assert len(set(fresh)) == 10
        assert not set(fresh) & {trial_seed(study_seed, number) for number in range(2_000)}
        # A larger number of seeds begins with the same ones.
        assert confirmation_seeds(study_seed, 3) == fresh[:3]
    assert confirmation_seeds(0, 3) != confirmation_seeds(1, 3)


def test_only_schedule_and_epochs_of_a_finalist_differ_from_its_trial() -> None:
    final = finalist_recipe(GOOD_RECIPE, Finalists(epochs=18, schedule="one-cycle", images="slice"))
    changed = {name for name, value in final.to_flat_dict().items() if value != GOOD_RECIPE.to_flat_dict()[name]}
    assert changed == {"schedule.name", "epochs"}
    assert (final.schedule.name, final.epochs) == ("one-cycle", 18)
    assert finalist_recipe(GOOD_RECIPE, Finalists(schedule="cosine")).schedule.name == "cosine"
    assert finalist_recipe(GOOD_RECIPE.replace({"patience": 2}), Finalists()).patience == 0
    everything = finalist_recipe(GOOD_RECIPE, Finalists(images="all"))
    assert (everything.data.train_images, everything.data.validation) == (0, DATA_CONFIG.validation)


# ---------------------------------------------------------------------------------------- model


def test_without_a_refit_the_model_is_that_of_the_first_seed(train: RecordingTrainer, images: Images) -> None:
    selected = select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert selected is not None
    assert len(train.results) == 2
    assert selected.recipe == train.recipes[0]
    assert not selected.classifier.training
    assert evaluate(selected.classifier, images.validation).accuracy == selected.confirmed.accuracies[0]


def test_the_model_has_the_weights_of_the_last_epoch_and_not_the_best(train: RecordingTrainer, images: Images) -> None:
    # So large a rate gets worse after its first epoch; it is the last one that was confirmed.
    unstable = TINY_RECIPE.replace({"optimizer.name": "sgd", "optimizer.learning_rate": 0.5, "averaging.horizon": 0})
    selected = select_model(make_leaders(unstable), SETTINGS.model_copy(update={"epochs": 6}), SEED, train, images)
    assert selected is not None
    result = train.results[0]
    assert result.best_epoch != 6
    assert result.last_weights is not None
    for name, tensor in selected.classifier.state_dict().items():
        assert torch.equal(tensor, result.last_weights[name]), name


def test_a_refit_trains_the_selected_recipe_on_training_and_validation_images(
    source: DataSource, execution: Execution
) -> None:
    recipe = GOOD_RECIPE.replace({"batch_size": 500})
    settings = Finalists(seeds=1, epochs=1, images="slice", refit="everything")
    trained: list[Recipe] = []

    def train(_: str, recipe: Recipe) -> TrialResult:
        trained.append(recipe)
        return run_trial(recipe, load_images(recipe.data, source), execution)

    selected = select_model(
        make_leaders(recipe), settings, SEED, partial(train_sequentially, train), load_images(DATA_CONFIG, source)
    )
    assert selected is not None
    first, refit = trained
    assert (refit.data.validation, refit.data.train_images, refit.data.training_count) == (0, 0, 60_000)
    assert refit == first.replace({"data.validation": 0, "data.train_images": 0})
    assert refit.seed == confirmation_seeds(SEED, 1)[0]
    assert selected.recipe == refit
    # What was confirmed is the recipe that still held images back.
    assert selected.confirmed.recipe.data == DATA_CONFIG
    # Its pixels are normalised by the mean of all the images.
    assert float(selected.classifier.mean) == pytest.approx(load_images(refit.data, source).mean)


def test_a_model_is_evaluated_on_the_test_images(train: RecordingTrainer, images: Images, source: DataSource) -> None:
    selected = select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert selected is not None
    test = read_test_set("fashion-mnist", source)
    with torch.inference_mode():
        hits = int((selected.classifier(test.pixels).argmax(1) == test.labels).sum())
    accuracy = evaluate_on_test_set(selected.classifier, "fashion-mnist", source).accuracy
    assert (accuracy.correct, accuracy.images) == (hits, 10_000)
    assert accuracy.low < accuracy.value < accuracy.high
    # Two epochs on a thousand images give an accuracy between these bounds.
    assert 0.5 < accuracy.value < 0.9


def test_a_model_is_tested_without_dropout(source: DataSource) -> None:
    torch.manual_seed(0)
    model = build(TINY_RECIPE.replace({"model.dropout": 0.9}).model, mean=73.0, std=90.0).train()
    once, again = (evaluate_on_test_set(model, "fashion-mnist", source) for _ in range(2))
    assert torch.equal(once.probabilities, again.probabilities)


# ---------------------------------------------------------------------------- failures


def test_a_finalist_that_fails_is_left_out(train: RecordingTrainer, images: Images) -> None:
    selected = select_model(make_leaders(OVERSIZED_RECIPE, SLOW_RECIPE), SETTINGS, SEED, train, images)
    assert selected is not None
    assert selected.confirmed.trial == 1
    assert [result.state for result in train.results] == [TrialState.FAILED] * 2 + [TrialState.COMPLETED] * 2


def test_a_finalist_that_fails_from_one_seed_is_left_out(train: RecordingTrainer, images: Images) -> None:
    def fail_one_seed(name: str, recipe: Recipe) -> TrialResult:
        result = train.train_one(name, recipe)
        if name.startswith("finalist 000 seed 2"):
            return dataclasses.replace(result, state=TrialState.FAILED, reason="out of memory")
        return result

    selected = select_model(
        make_leaders(GOOD_RECIPE, UNTRAINED_RECIPE), SETTINGS, SEED, partial(train_sequentially, fail_one_seed), images
    )
    assert selected is not None
    assert selected.confirmed.trial == 1


def test_finalists_that_all_fail_give_an_error(train: RecordingTrainer, images: Images) -> None:
    with pytest.raises(UserError, match="every one of them failed") as caught:
        select_model(make_leaders(OVERSIZED_RECIPE, OVERSIZED_RECIPE), SETTINGS, SEED, train, images)
    assert caught.value.exit_code == 4


def test_a_refit_that_fails_gives_an_error_with_the_reason(train: RecordingTrainer, images: Images) -> None:
    def fail_refit(name: str, recipe: Recipe) -> TrialResult:
        return train.train_one(name, OVERSIZED_RECIPE if name.startswith("refit") else recipe)

    settings = SETTINGS.model_copy(update={"refit": "everything"})
    with pytest.raises(UserError, match=r"failed on all images \(.*parameters") as caught:
        select_model(make_leaders(GOOD_RECIPE), settings, SEED, partial(train_sequentially, fail_refit), images)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_an_interruption_ends_the_selection_without_a_model(at: int, train: RecordingTrainer, images: Images) -> None:
    # Two finalists with two seeds each, and the refit.
    train.interrupt_at = at
    settings = SETTINGS.model_copy(update={"refit": "everything"})
    assert select_model(make_leaders(GOOD_RECIPE, UNTRAINED_RECIPE), settings, SEED, train, images) is None
    assert len(train.results) == at + 1
    assert train.results[-1].state is TrialState.INTERRUPTED


# ---------------------------------------------------------------------------------- selection key

OTHER_SETTINGS: dict[str, object] = {
    "recipes": 9,
    "seeds": 9,
    "epochs": 9,
    "schedule": "cosine",
    "images": "all",
    "refit": "everything",
    "ensemble": 9,
    "model_name": "other",
}


def test_there_is_another_value_for_every_setting() -> None:
    assert OTHER_SETTINGS.keys() == Finalists.model_fields.keys()


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_the_selection_key_depends_on_every_setting(name: str) -> None:
    other = SETTINGS.model_copy(update={name: OTHER_SETTINGS[name]})
    assert selection_key(make_leaders(GOOD_RECIPE), other) != selection_key(make_leaders(GOOD_RECIPE), SETTINGS)


def test_the_selection_key_depends_on_the_recipes() -> None:
    leaders = [
        make_leaders(GOOD_RECIPE),
        make_leaders(SLOW_RECIPE),
        make_leaders(GOOD_RECIPE, SLOW_RECIPE),
        make_leaders(GOOD_RECIPE, SLOW_RECIPE, UNTRAINED_RECIPE),
    ]
    assert len({selection_key(each, SETTINGS) for each in leaders}) == len(leaders)


def test_the_selection_key_does_not_depend_on_numbers_and_seeds() -> None:
    # With another number and another seed of the search, the finalists would be trained in the same way.
    again = [
        dataclasses.replace(record, number=record.number + 5, recipe=record.recipe.replace({"seed": 9}))
        for record in make_leaders(GOOD_RECIPE)
    ]
    assert selection_key(again, SETTINGS) == selection_key(make_leaders(GOOD_RECIPE), SETTINGS)


# ------------------------------------------------------------------------------------ correctness record


def test_the_correctness_record_is_that_of_the_confirming_trainings(train: RecordingTrainer, images: Images) -> None:
    selected = select_model(make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert selected is not None
    assert selected.correctness.correct.shape == (2, len(images.validation))
    assert selected.correctness.accuracies == pytest.approx(selected.confirmed.accuracies)
    assert (selected.correctness.dataset_digest, selected.correctness.split_digest) == (
        images.digest,
        images.split_digest,
    )
    assert [candidate.trial for candidate in selected.candidates] == [1, 0]


def test_the_correctness_record_is_not_that_of_a_refit(source: DataSource) -> None:
    # The refit has trained on the validation images.
    images = load_images(DATA_CONFIG, source)
    settings = Finalists(seeds=1, epochs=1, images="slice")
    results: list[TrialResult] = []

    def train(_: str, recipe: Recipe) -> TrialResult:
        results.append(run_trial(recipe, load_images(recipe.data, source), Execution(threads=1)))
        return results[-1]

    selected = select_model(
        make_leaders(GOOD_RECIPE.replace({"batch_size": 500})),
        settings,
        SEED,
        partial(train_sequentially, train),
        images,
    )
    assert selected is not None
    assert selected.correctness.accuracies == pytest.approx((results[0].value,))
    assert evaluate(selected.classifier, images.validation).accuracy != pytest.approx(results[0].value)


# ------------------------------------------------------------------------------------ ensemble

ENSEMBLE_SETTINGS = SETTINGS.model_copy(update={"recipes": 3, "ensemble": 2})


def mean_probabilities(results: Sequence[TrialResult], recipes: Sequence[Recipe], pixels: torch.Tensor) -> torch.Tensor:
    """The mean probabilities of trained networks, computed one by one."""
    found = []
    for result, recipe in zip(results, recipes, strict=True):
        classifier = build(recipe.model).eval()
        assert result.last_weights is not None
        classifier.load_state_dict(result.last_weights)
        with torch.inference_mode():
            found.append(classifier(pixels).softmax(1))
    return torch.stack(found).mean(0)


def test_an_ensemble_averages_the_probabilities_of_the_best_recipes(train: RecordingTrainer, images: Images) -> None:
    selected = select_model(
        make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE, SLOW_RECIPE), ENSEMBLE_SETTINGS, SEED, train, images
    )
    assert selected is not None
    # Trainings 2 and 4 are the first seeds of the second and the third recipe, which are better than the untrained one.
    members = [(train.results[number], train.recipes[number]) for number in (2, 4)]
    assert selected.recipes == tuple(recipe for _, recipe in members)
    pixels, labels = images.validation.pixels, images.validation.labels
    expected = mean_probabilities(*zip(*members, strict=True), pixels)  # type: ignore[arg-type]
    with torch.inference_mode():
        given = selected.classifier(pixels).softmax(1)
    assert torch.allclose(given, expected, atol=1e-5)
    # Its scores are those of the ensembles, one for each seed.
    second_seeds = [(train.results[number], train.recipes[number]) for number in (3, 5)]
    second = mean_probabilities(*zip(*second_seeds, strict=True), pixels)  # type: ignore[arg-type]
    accuracies = [(mean.argmax(1) == labels).float().mean().item() for mean in (expected, second)]
    assert selected.confirmed.accuracies == pytest.approx(tuple(accuracies))
    assert selected.confirmed.trial == 1


def test_an_ensemble_of_more_members_than_recipes_takes_further_seeds(train: RecordingTrainer, images: Images) -> None:
    settings = SETTINGS.model_copy(update={"ensemble": 3})
    selected = select_model(make_leaders(SLOW_RECIPE, GOOD_RECIPE), settings, SEED, train, images)
    assert selected is not None
    first, second = confirmation_seeds(SEED, 2)
    good, slow = finalist_recipe(GOOD_RECIPE, settings), finalist_recipe(SLOW_RECIPE, settings)
    assert selected.recipes == (
        good.replace({"seed": first}),
        slow.replace({"seed": first}),
        good.replace({"seed": second}),
    )
    # All seeds make one ensemble, so its standard deviation is not known.
    assert len(selected.confirmed.accuracies) == 1


def test_every_member_of_an_ensemble_is_refitted(source: DataSource, execution: Execution) -> None:
    recipes = [recipe.replace({"batch_size": 500}) for recipe in (GOOD_RECIPE, SLOW_RECIPE)]
    settings = Finalists(recipes=2, seeds=1, epochs=1, images="slice", ensemble=2)
    trained: dict[str, Recipe] = {}

    def train(name: str, recipe: Recipe) -> TrialResult:
        trained[name] = recipe
        return run_trial(recipe, load_images(recipe.data, source), execution)

    selected = select_model(
        make_leaders(*recipes), settings, SEED, partial(train_sequentially, train), load_images(DATA_CONFIG, source)
    )
    assert selected is not None
    assert len(trained) == 4
    assert set(list(trained.values())[2:]) == set(selected.recipes)
    assert {recipe.data.validation for recipe in selected.recipes} == {0}
    assert selected.correctness.correct.shape == (1, DATA_CONFIG.validation)


@pytest.mark.parametrize(
    ("members", "recipes", "seeds", "models"),
    [
        (1, 3, 2, [[(0, 0)], [(0, 1)]]),
        (2, 3, 2, [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]),
        (3, 1, 3, [[(0, 0), (0, 1), (0, 2)]]),
        (2, 1, 5, [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]),
        (3, 2, 4, [[(0, 0), (1, 0), (0, 1)], [(0, 2), (1, 2), (0, 3)]]),
        (5, 2, 2, []),
    ],
)
def test_members_are_assigned_to_the_recipes_in_turn_and_then_to_further_seeds(
    members: int, recipes: int, seeds: int, models: list[list[tuple[int, int]]]
) -> None:
    assert assign(members, recipes, seeds) == models


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_no_training_is_in_two_models_and_there_is_a_model_if_there_are_enough_trainings(
    members: int, recipes: int, seeds: int
) -> None:
    models = assign(members, recipes, seeds)
    assignments = [assignment for model in models for assignment in model]
    assert len(assignments) == len(set(assignments)) == members * len(models)
    assert all(rank < recipes and index < seeds for rank, index in assignments)
    assert bool(models) == (members <= recipes * seeds)


def test_an_ensemble_of_more_members_than_finalists_is_refused_before_training(
    train: RecordingTrainer, images: Images
) -> None:
    settings = SETTINGS.model_copy(update={"recipes": 3, "ensemble": 5})
    with pytest.raises(
        UserError, match="5 members are more than the 4 finalists there are, 2 distinct recipes"
    ) as caught:
        select_model(make_leaders(GOOD_RECIPE, SLOW_RECIPE), settings, SEED, train, images)
    assert caught.value.exit_code == 2
    assert not train.results


def test_an_ensemble_with_too_few_completed_members_gives_an_error(train: RecordingTrainer, images: Images) -> None:
    settings = SETTINGS.model_copy(update={"recipes": 2, "ensemble": 3})
    with pytest.raises(UserError, match="3 members are more than the 2 finalists there are") as caught:
        select_model(make_leaders(GOOD_RECIPE, OVERSIZED_RECIPE), settings, SEED, train, images)
    assert caught.value.exit_code == 4

"""Finalists: the best mean over fresh seeds wins, and what comes out is what was trained."""

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
from fmnist_search.workflows.registration import evaluate_on_test_set
from fmnist_search.workflows.study.finalists import (
    assign,
    confirmation_seeds,
    finalist_recipe,
    select_model,
    selection_key,
)

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
    """The best trials of a search, the best first, whatever they are worth."""
    return [
        TrialRecord(number, TrialState.COMPLETED, 0.9 - number / 100, 1, recipe, 1.0)
        for number, recipe in enumerate(recipes)
    ]


class RecordingTrainer:
    """Trains for real and keeps the record; interrupts itself at the end of an epoch when told to."""

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
    """What a crew of one worker does: after an interruption nothing more is begun."""
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


# --------------------------------------------------------------------------------------- the choice


def test_the_best_mean_wins_whatever_the_search_thought(train: RecordingTrainer, images: Images) -> None:
    chosen = select_model(make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE, SLOW_RECIPE), SETTINGS, SEED, train, images)
    assert chosen is not None
    assert chosen.confirmed.trial == 1
    assert chosen.confirmed.recipe == finalist_recipe(GOOD_RECIPE, SETTINGS)
    values = [result.value for result in train.results]
    assert chosen.confirmed.accuracies == tuple(values[2:4])
    means = [sum(value or 0 for value in values[at : at + 2]) / 2 for at in (0, 2, 4)]
    assert chosen.confirmed.mean == pytest.approx(max(means))
    assert len(values) == 6


def test_one_lucky_seed_does_not_win(train: RecordingTrainer, images: Images) -> None:
    def lucky(name: str, recipe: Recipe) -> TrialResult:
        return train.train_one(name, UNTRAINED_RECIPE if name.startswith("finalist 000 seed 2") else recipe)

    steady = TINY_RECIPE.replace({"optimizer.learning_rate": 5e-3})
    chosen = select_model(make_leaders(GOOD_RECIPE, steady), SETTINGS, SEED, partial(train_sequentially, lucky), images)
    assert chosen is not None
    assert chosen.confirmed.trial == 1
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


def test_the_names_of_the_trainings_say_what_they_are(train: RecordingTrainer, images: Images) -> None:
    select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert train.job_names == ["finalist 000 seed 1 mlp 16", "finalist 000 seed 2 mlp 16"]


def test_fresh_seeds_are_distinct_and_no_trial_had_them() -> None:
    for study_seed in range(20):
        fresh = confirmation_seeds(study_seed, 10)
        assert len(set(fresh)) == 10
        assert not set(fresh) & {trial_seed(study_seed, number) for number in range(2_000)}
        # Asking for more does not change the first.
        assert confirmation_seeds(study_seed, 3) == fresh[:3]
    assert confirmation_seeds(0, 3) != confirmation_seeds(1, 3)


def test_a_finalist_is_annealed_and_longer_and_otherwise_as_it_was() -> None:
    final = finalist_recipe(GOOD_RECIPE, Finalists(epochs=18, schedule="one-cycle", images="slice"))
    changed = {name for name, value in final.to_flat_dict().items() if value != GOOD_RECIPE.to_flat_dict()[name]}
    assert changed == {"schedule.name", "epochs"}
    assert (final.schedule.name, final.epochs) == ("one-cycle", 18)
    assert finalist_recipe(GOOD_RECIPE, Finalists(schedule="cosine")).schedule.name == "cosine"
    assert finalist_recipe(GOOD_RECIPE.replace({"patience": 2}), Finalists()).patience == 0
    everything = finalist_recipe(GOOD_RECIPE, Finalists(images="all"))
    assert (everything.data.train_images, everything.data.validation) == (0, DATA_CONFIG.validation)


# ---------------------------------------------------------------------------------------- the model


def test_without_a_refit_the_model_is_that_of_the_first_seed(train: RecordingTrainer, images: Images) -> None:
    chosen = select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert chosen is not None
    assert len(train.results) == 2
    assert chosen.recipe == train.recipes[0]
    assert not chosen.classifier.training
    assert evaluate(chosen.classifier, images.validation).accuracy == chosen.confirmed.accuracies[0]


def test_the_model_has_the_weights_of_the_last_epoch_and_not_the_best(train: RecordingTrainer, images: Images) -> None:
    # So large a rate gets worse after its first epoch; it is the last one that was confirmed.
    restless = TINY_RECIPE.replace({"optimizer.name": "sgd", "optimizer.learning_rate": 0.5, "averaging.horizon": 0})
    chosen = select_model(make_leaders(restless), SETTINGS.model_copy(update={"epochs": 6}), SEED, train, images)
    assert chosen is not None
    result = train.results[0]
    assert result.best_epoch != 6
    assert result.last_weights is not None
    for name, tensor in chosen.classifier.state_dict().items():
        assert torch.equal(tensor, result.last_weights[name]), name


def test_a_refit_trains_the_choice_on_training_and_validation_images_together(
    source: DataSource, execution: Execution
) -> None:
    recipe = GOOD_RECIPE.replace({"batch_size": 500})
    settings = Finalists(seeds=1, epochs=1, images="slice", refit="everything")
    trained: list[Recipe] = []

    def train(_: str, recipe: Recipe) -> TrialResult:
        trained.append(recipe)
        return run_trial(recipe, load_images(recipe.data, source), execution)

    chosen = select_model(
        make_leaders(recipe), settings, SEED, partial(train_sequentially, train), load_images(DATA_CONFIG, source)
    )
    assert chosen is not None
    first, refit = trained
    assert (refit.data.validation, refit.data.train_images, refit.data.training_count) == (0, 0, 60_000)
    assert refit == first.replace({"data.validation": 0, "data.train_images": 0})
    assert refit.seed == confirmation_seeds(SEED, 1)[0]
    assert chosen.recipe == refit
    # What was confirmed is the recipe that still held images back.
    assert chosen.confirmed.recipe.data == DATA_CONFIG
    # Its pixels are normalised by the mean of all the images.
    assert float(chosen.classifier.mean) == pytest.approx(load_images(refit.data, source).mean)


def test_the_model_looks_at_the_test_images_once(train: RecordingTrainer, images: Images, source: DataSource) -> None:
    chosen = select_model(make_leaders(GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert chosen is not None
    test = read_test_set("fashion-mnist", source)
    with torch.inference_mode():
        hits = int((chosen.classifier(test.pixels).argmax(1) == test.labels).sum())
    accuracy = evaluate_on_test_set(chosen.classifier, "fashion-mnist", source).accuracy
    assert (accuracy.correct, accuracy.images) == (hits, 10_000)
    assert accuracy.low < accuracy.value < accuracy.high
    # Trained for two epochs on a thousand images it knows a good deal, and not everything.
    assert 0.5 < accuracy.value < 0.9


def test_a_model_is_tested_as_it_will_be_used_without_dropout(source: DataSource) -> None:
    torch.manual_seed(0)
    model = build(TINY_RECIPE.replace({"model.dropout": 0.9}).model, mean=73.0, std=90.0).train()
    once, again = (evaluate_on_test_set(model, "fashion-mnist", source) for _ in range(2))
    assert torch.equal(once.probabilities, again.probabilities)


# ---------------------------------------------------------------------------- what may go wrong


def test_a_finalist_that_fails_is_left_out(train: RecordingTrainer, images: Images) -> None:
    chosen = select_model(make_leaders(OVERSIZED_RECIPE, SLOW_RECIPE), SETTINGS, SEED, train, images)
    assert chosen is not None
    assert chosen.confirmed.trial == 1
    assert [result.state for result in train.results] == [TrialState.FAILED] * 2 + [TrialState.COMPLETED] * 2


def test_a_finalist_that_fails_from_one_seed_is_left_out(train: RecordingTrainer, images: Images) -> None:
    def unlucky(name: str, recipe: Recipe) -> TrialResult:
        result = train.train_one(name, recipe)
        if name.startswith("finalist 000 seed 2"):
            return dataclasses.replace(result, state=TrialState.FAILED, reason="out of memory")
        return result

    chosen = select_model(
        make_leaders(GOOD_RECIPE, UNTRAINED_RECIPE), SETTINGS, SEED, partial(train_sequentially, unlucky), images
    )
    assert chosen is not None
    assert chosen.confirmed.trial == 1


def test_where_every_finalist_fails_there_is_no_champion(train: RecordingTrainer, images: Images) -> None:
    with pytest.raises(UserError, match="every one of them failed") as caught:
        select_model(make_leaders(OVERSIZED_RECIPE, OVERSIZED_RECIPE), SETTINGS, SEED, train, images)
    assert caught.value.exit_code == 4


def test_a_refit_that_fails_says_why(train: RecordingTrainer, images: Images) -> None:
    def fails_at_last(name: str, recipe: Recipe) -> TrialResult:
        return train.train_one(name, OVERSIZED_RECIPE if name.startswith("champion") else recipe)

    settings = SETTINGS.model_copy(update={"refit": "everything"})
    with pytest.raises(UserError, match=r"failed on all images \(.*parameters") as caught:
        select_model(make_leaders(GOOD_RECIPE), settings, SEED, partial(train_sequentially, fails_at_last), images)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_an_interruption_ends_it_at_once_without_a_champion(at: int, train: RecordingTrainer, images: Images) -> None:
    # Two finalists with two seeds each, and the refit.
    train.interrupt_at = at
    settings = SETTINGS.model_copy(update={"refit": "everything"})
    assert select_model(make_leaders(GOOD_RECIPE, UNTRAINED_RECIPE), settings, SEED, train, images) is None
    assert len(train.results) == at + 1
    assert train.results[-1].state is TrialState.INTERRUPTED


# ---------------------------------------------------------------------------------- the fingerprint

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
def test_a_choice_is_another_with_any_other_setting(name: str) -> None:
    other = SETTINGS.model_copy(update={name: OTHER_SETTINGS[name]})
    assert selection_key(make_leaders(GOOD_RECIPE), other) != selection_key(make_leaders(GOOD_RECIPE), SETTINGS)


def test_a_choice_is_another_among_other_recipes() -> None:
    choices = [
        make_leaders(GOOD_RECIPE),
        make_leaders(SLOW_RECIPE),
        make_leaders(GOOD_RECIPE, SLOW_RECIPE),
        make_leaders(GOOD_RECIPE, SLOW_RECIPE, UNTRAINED_RECIPE),
    ]
    assert len({selection_key(choice, SETTINGS) for choice in choices}) == len(choices)


def test_a_choice_is_the_same_among_the_same_recipes() -> None:
    # Another number, another seed of the search: the finalists would be trained as before.
    again = [
        dataclasses.replace(row, number=row.number + 5, recipe=row.recipe.replace({"seed": 9}))
        for row in make_leaders(GOOD_RECIPE)
    ]
    assert selection_key(again, SETTINGS) == selection_key(make_leaders(GOOD_RECIPE), SETTINGS)


# ------------------------------------------------------------------------------------ what is kept


def test_the_record_tells_which_validation_images_the_confirming_trainings_got_right(
    train: RecordingTrainer, images: Images
) -> None:
    chosen = select_model(make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE), SETTINGS, SEED, train, images)
    assert chosen is not None
    assert chosen.correctness.correct.shape == (2, len(images.validation))
    assert chosen.correctness.accuracies == pytest.approx(chosen.confirmed.accuracies)
    assert (chosen.correctness.dataset_digest, chosen.correctness.split_digest) == (images.digest, images.split_digest)
    assert [candidate.trial for candidate in chosen.candidates] == [1, 0]


def test_a_refit_that_has_seen_the_validation_images_leaves_no_record_of_them(source: DataSource) -> None:
    # Judged by the refit, the images it has learned from would look easy.
    images = load_images(DATA_CONFIG, source)
    settings = Finalists(seeds=1, epochs=1, images="slice")
    results: list[TrialResult] = []

    def train(_: str, recipe: Recipe) -> TrialResult:
        results.append(run_trial(recipe, load_images(recipe.data, source), Execution(threads=1)))
        return results[-1]

    chosen = select_model(
        make_leaders(GOOD_RECIPE.replace({"batch_size": 500})),
        settings,
        SEED,
        partial(train_sequentially, train),
        images,
    )
    assert chosen is not None
    assert chosen.correctness.accuracies == pytest.approx((results[0].value,))
    assert evaluate(chosen.classifier, images.validation).accuracy != pytest.approx(results[0].value)


# ------------------------------------------------------------------------------------ the ensemble

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
    chosen = select_model(
        make_leaders(UNTRAINED_RECIPE, GOOD_RECIPE, SLOW_RECIPE), ENSEMBLE_SETTINGS, SEED, train, images
    )
    assert chosen is not None
    # Trainings 2 and 4 are the first seeds of the second and the third recipe, which are better than the lazy one.
    members = [(train.results[place], train.recipes[place]) for place in (2, 4)]
    assert chosen.recipes == tuple(recipe for _, recipe in members)
    pixels, labels = images.validation.pixels, images.validation.labels
    expected = mean_probabilities(*zip(*members, strict=True), pixels)  # type: ignore[arg-type]
    with torch.inference_mode():
        given = chosen.classifier(pixels).softmax(1)
    assert torch.allclose(given, expected, atol=1e-5)
    # Its figures are its own: of each seed's networks together.
    again = [(train.results[place], train.recipes[place]) for place in (3, 5)]
    second = mean_probabilities(*zip(*again, strict=True), pixels)  # type: ignore[arg-type]
    shares = [(mean.argmax(1) == labels).float().mean().item() for mean in (expected, second)]
    assert chosen.confirmed.accuracies == pytest.approx(tuple(shares))
    assert chosen.confirmed.trial == 1


def test_where_the_recipes_are_too_few_an_ensemble_takes_more_seeds(train: RecordingTrainer, images: Images) -> None:
    settings = SETTINGS.model_copy(update={"ensemble": 3})
    chosen = select_model(make_leaders(SLOW_RECIPE, GOOD_RECIPE), settings, SEED, train, images)
    assert chosen is not None
    first, second = confirmation_seeds(SEED, 2)
    good, slow = finalist_recipe(GOOD_RECIPE, settings), finalist_recipe(SLOW_RECIPE, settings)
    assert chosen.recipes == (
        good.replace({"seed": first}),
        slow.replace({"seed": first}),
        good.replace({"seed": second}),
    )
    # All seeds that there are make one ensemble: its deviation is not known.
    assert len(chosen.confirmed.accuracies) == 1


def test_every_member_of_an_ensemble_is_refitted(source: DataSource, execution: Execution) -> None:
    recipes = [recipe.replace({"batch_size": 500}) for recipe in (GOOD_RECIPE, SLOW_RECIPE)]
    settings = Finalists(recipes=2, seeds=1, epochs=1, images="slice", ensemble=2)
    trained: dict[str, Recipe] = {}

    def train(name: str, recipe: Recipe) -> TrialResult:
        trained[name] = recipe
        return run_trial(recipe, load_images(recipe.data, source), execution)

    chosen = select_model(
        make_leaders(*recipes), settings, SEED, partial(train_sequentially, train), load_images(DATA_CONFIG, source)
    )
    assert chosen is not None
    assert len(trained) == 4
    assert set(list(trained.values())[2:]) == set(chosen.recipes)
    assert {recipe.data.validation for recipe in chosen.recipes} == {0}
    assert chosen.correctness.correct.shape == (1, DATA_CONFIG.validation)


@pytest.mark.parametrize(
    ("members", "recipes", "seeds", "teams"),
    [
        (1, 3, 2, [[(0, 0)], [(0, 1)]]),
        (2, 3, 2, [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]),
        (3, 1, 3, [[(0, 0), (0, 1), (0, 2)]]),
        (2, 1, 5, [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]),
        (3, 2, 4, [[(0, 0), (1, 0), (0, 1)], [(0, 2), (1, 2), (0, 3)]]),
        (5, 2, 2, []),
    ],
)
def test_members_are_dealt_out_over_the_recipes_and_then_over_further_seeds(
    members: int, recipes: int, seeds: int, teams: list[list[tuple[int, int]]]
) -> None:
    assert assign(members, recipes, seeds) == teams


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_no_training_has_two_seats_and_there_are_teams_wherever_there_are_trainings_enough(
    members: int, recipes: int, seeds: int
) -> None:
    teams = assign(members, recipes, seeds)
    taken = [seat for team in teams for seat in team]
    assert len(taken) == len(set(taken)) == members * len(teams)
    assert all(place < recipes and number < seeds for place, number in taken)
    assert bool(teams) == (members <= recipes * seeds)


def test_an_ensemble_of_more_than_there_is_is_refused_before_anything_is_trained(
    train: RecordingTrainer, images: Images
) -> None:
    settings = SETTINGS.model_copy(update={"recipes": 3, "ensemble": 5})
    with pytest.raises(
        UserError, match="5 members are more than the 4 finalists there are, 2 distinct recipes"
    ) as caught:
        select_model(make_leaders(GOOD_RECIPE, SLOW_RECIPE), settings, SEED, train, images)
    assert caught.value.exit_code == 2
    assert not train.results


def test_an_ensemble_whose_members_failed_is_none(train: RecordingTrainer, images: Images) -> None:
    settings = SETTINGS.model_copy(update={"recipes": 2, "ensemble": 3})
    with pytest.raises(UserError, match="3 members are more than the 2 finalists there are") as caught:
        select_model(make_leaders(GOOD_RECIPE, OVERSIZED_RECIPE), settings, SEED, train, images)
    assert caught.value.exit_code == 4

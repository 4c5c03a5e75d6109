"""What a search shows: best trials at the boundaries of the space, and importances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.space import Space, parse_space
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.analysis import BEST_TRIALS, MIN_TRIALS, boundary_warnings
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import base_recipe, suggest_recipe
from tests.support.studies import make_study, space_tables

# --------------------------------------------------------------------------------------- boundaries


def make_trials(*changes: dict[str, Any]) -> list[TrialRecord]:
    """Return completed trials, the best first."""
    return [
        TrialRecord(number, TrialState.COMPLETED, 0.9 - number / 100, 3, Recipe().replace(change), 1.0)
        for number, change in enumerate(changes)
    ]


def make_best_trials(name: str, *values: Any, **others: Any) -> list[TrialRecord]:
    """Return the five best trials with these values of one hyperparameter; a single value is the same in all."""
    spread = values if len(values) > 1 else values * BEST_TRIALS
    return make_trials(*({**others, name: value} for value in spread))


def make_space(common: dict[str, Any] | None = None, **families: dict[str, Any]) -> Space:
    return parse_space({"common": common or {}, **families})


LEARNING_RATE_SPACE = make_space({"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}})
LABEL_SMOOTHING_SPACE = make_space({"label_smoothing": {"low": 0.1, "high": 0.5}})


@pytest.mark.parametrize(
    ("space", "best", "line"),
    [
        (
            LEARNING_RATE_SPACE,
            make_best_trials("optimizer.learning_rate", 0.1, 0.099, 0.095, 0.09, 0.085),
            "optimizer.learning_rate: the best 5 lie within 5% of its upper bound, 0.1; widen it",
        ),
        (
            LEARNING_RATE_SPACE,
            make_best_trials("optimizer.learning_rate", 0.001, 0.00101, 0.0011, 0.0012, 0.00125),
            "optimizer.learning_rate: the best 5 lie within 5% of its lower bound, 0.001; widen it",
        ),
        (
            LABEL_SMOOTHING_SPACE,
            make_best_trials("label_smoothing", 0.1, 0.101, 0.105, 0.11, 0.12),
            "label_smoothing: the best 5 lie within 5% of its lower bound, 0.1; widen it",
        ),
        (
            LABEL_SMOOTHING_SPACE,
            make_best_trials("label_smoothing", 0.48, 0.485, 0.49, 0.499, 0.5),
            "label_smoothing: the best 5 lie within 5% of its upper bound, 0.5; widen it",
        ),
        (
            make_space(cnn={"width_1": {"low": 16, "high": 64, "step": 16}}),
            make_best_trials("model.width_1", 64),
            "model.width_1: the best 5 lie within 5% of its upper bound, 64; widen it",
        ),
        (
            make_space({"batch_size": [128, 256, 64]}),
            make_best_trials("batch_size", 64),
            "batch_size: the best 5 all take its smallest value, 64; offer smaller ones",
        ),
        (
            make_space({"batch_size": [128, 256, 64]}),
            make_best_trials("batch_size", 256),
            "batch_size: the best 5 all take its largest value, 256; offer larger ones",
        ),
        (
            make_space(cnn={"depth": [2, 3, 4]}),
            make_best_trials("model.depth", 4),
            "model.depth: the best 5 all take its largest value, 4; offer larger ones",
        ),
    ],
)
def test_domain_with_all_best_trials_at_a_boundary_has_a_line_with_the_remedy(
    space: Space, best: list[TrialRecord], line: str
) -> None:
    assert boundary_warnings(best, space) == (line,)


@pytest.mark.parametrize(
    ("space", "best"),
    [
        (LEARNING_RATE_SPACE, make_best_trials("optimizer.learning_rate", 0.1, 0.099, 0.095, 0.09, 0.02)),
        (LEARNING_RATE_SPACE, make_best_trials("optimizer.learning_rate", 0.1, 0.1, 0.1, 0.001, 0.001)),
        # Near the lower bound, but a quarter of the range away from it in the logarithm.
        (LEARNING_RATE_SPACE, make_best_trials("optimizer.learning_rate", 0.003)),
        (LABEL_SMOOTHING_SPACE, make_best_trials("label_smoothing", 0.1, 0.1, 0.1, 0.1, 0.13)),
        (make_space({"batch_size": [64, 128, 256]}), make_best_trials("batch_size", 128)),
        (make_space({"batch_size": [64, 128, 256]}), make_best_trials("batch_size", 64, 64, 64, 64, 128)),
    ],
)
def test_best_trials_that_do_not_agree_give_no_line(space: Space, best: list[TrialRecord]) -> None:
    assert boundary_warnings(best, space) == ()


@pytest.mark.parametrize(
    ("space", "best"),
    [
        (make_space(cnn={"dropout": {"low": 0.0, "high": 0.5}}), make_best_trials("model.dropout", 0.0)),
        (make_space({"augmentation.flip": {"low": 0.5, "high": 1.0}}), make_best_trials("augmentation.flip", 1.0)),
        (make_space(cnn={"depth": [3, 4, 5]}), make_best_trials("model.depth", 5)),
        (make_space(cnn={"width_1": {"low": 1, "high": 64}}), make_best_trials("model.width_1", 1)),
        (make_space(cnn={"hidden": [0, 64, 128]}), make_best_trials("model.hidden", 0)),
    ],
    ids=["no dropout", "always flipped", "five blocks", "one channel", "no hidden layer"],
)
def test_boundary_that_no_study_file_can_move_gives_no_line(space: Space, best: list[TrialRecord]) -> None:
    assert boundary_warnings(best, space) == ()


def test_choices_without_an_order_give_no_line() -> None:
    common = {"optimizer.name": ["sgd", "adam", "adamw"], "optimizer.nesterov": [True, False]}
    space = make_space(common, cnn={"kernel_1": [3, 5, 7], "convolutions": [1, 2]})
    best = make_best_trials("optimizer.name", "sgd", **{"model.kernel_1": 7, "model.convolutions": 2})
    assert boundary_warnings(best, space) == ()


def test_two_choices_give_no_line() -> None:
    assert boundary_warnings(make_best_trials("batch_size", 64), make_space({"batch_size": [64, 128]})) == ()


def test_fixed_hyperparameter_gives_no_line() -> None:
    assert boundary_warnings(make_best_trials("batch_size", 64), make_space({"batch_size": 64})) == ()
    assert boundary_warnings(make_best_trials("batch_size", 64), make_space()) == ()


def test_fewer_than_five_trials_give_no_line() -> None:
    best = make_best_trials("optimizer.learning_rate", 0.1)
    for number in range(BEST_TRIALS):
        assert boundary_warnings(best[:number], LEARNING_RATE_SPACE) == ()


def test_only_the_best_five_count() -> None:
    best = make_best_trials("optimizer.learning_rate", 0.1)
    assert (
        boundary_warnings([*best, *make_best_trials("optimizer.learning_rate", 0.01)], LEARNING_RATE_SPACE)
        == boundary_warnings(best, LEARNING_RATE_SPACE)
        != ()
    )


def test_each_boundary_has_a_line() -> None:
    space = make_space(
        {"batch_size": [64, 128, 256], "label_smoothing": {"low": 0.1, "high": 0.5}}, cnn={"depth": [1, 2, 3]}
    )
    best = make_best_trials("batch_size", 256, **{"label_smoothing": 0.5, "model.depth": 1})
    assert sorted(line.partition(":")[0] for line in boundary_warnings(best, space)) == [
        "batch_size",
        "label_smoothing",
    ]


def test_conditional_hyperparameter_that_not_all_best_have_gives_no_line() -> None:
    space = make_space(cnn={"depth": [1, 2, 3], "width_2": [16, 32, 64]})
    deep = {"model.depth": 2, "model.width_2": 64}
    assert boundary_warnings(make_trials(*[deep] * 5), space) == (
        "model.width_2: the best 5 all take its largest value, 64; offer larger ones",
    )
    assert boundary_warnings(make_trials(*[deep] * 4, {"model.depth": 1}), space) == ()


# Both families have a depth and a dropout, with the same names in a recipe.
TWO_FAMILY_SPACE = parse_space(
    {
        "common": {"family": ["cnn", "mlp"], "batch_size": [64, 128, 256]},
        "cnn": {"depth": [2, 3, 4], "dropout": {"low": 0.1, "high": 0.5}},
        "mlp": {"depth": [4, 5, 6], "dropout": {"low": 0.5, "high": 0.9}},
    }
)


def test_best_trials_of_several_families_give_lines_for_shared_hyperparameters_only() -> None:
    own = {"model.depth": 4, "model.dropout": 0.5, "batch_size": 256}
    mixed = [{"model.family": family, **own} for family in ("cnn", "mlp", "cnn", "mlp", "cnn")]
    line = "batch_size: the best 5 all take its largest value, 256; offer larger ones"
    assert boundary_warnings(make_trials(*mixed), TWO_FAMILY_SPACE) == (line,)
    assert boundary_warnings(make_trials(*mixed[::-1]), TWO_FAMILY_SPACE) == (line,)


def test_best_trials_of_one_family_are_compared_with_its_own_domains() -> None:
    cnn, mlp = (
        boundary_warnings(make_best_trials("model.dropout", 0.5, **{"model.family": f}), TWO_FAMILY_SPACE)
        for f in ("cnn", "mlp")
    )
    assert cnn == ("model.dropout: the best 5 lie within 5% of its upper bound, 0.5; widen it",)
    assert mlp == ("model.dropout: the best 5 lie within 5% of its lower bound, 0.5; widen it",)


def test_trials_outside_the_space_lie_at_its_boundary() -> None:
    # A study may try start recipes outside its space.
    space = make_space({"optimizer.weight_decay": {"low": 1e-3, "high": 0.1, "log": True}})
    decays = (0.0, 1e-6, 1e-3, 1e-3, 1e-3)
    assert boundary_warnings(make_best_trials("optimizer.weight_decay", *decays), space) == (
        "optimizer.weight_decay: the best 5 lie within 5% of its lower bound, 0.001; widen it",
    )
    assert boundary_warnings(make_best_trials("optimizer.weight_decay", 0.0, 1.0, 1e-2, 1e-3, 0.1), space) == ()


@settings(max_examples=40)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_boundaries_of_any_space_are_found(table: dict[str, Any], seed: int) -> None:
    config = make_study(table)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    base = base_recipe(config, "float32")
    drawn = [suggest_recipe(search.ask(), config.space, base, number) for number in range(BEST_TRIALS)]
    best = [TrialRecord(number, TrialState.COMPLETED, 0.5, 3, recipe, 1.0) for number, recipe in enumerate(drawn)]
    searched = {name for family in config.space.families for name in config.space.domains(family)}
    assert {line.partition(":")[0] for line in boundary_warnings(best, config.space)} <= searched


# -------------------------------------------------------------------------------------- importances

TOY_SPACE: dict[str, Any] = {
    "common": {
        "batch_size": [64, 128, 256],
        "label_smoothing": {"low": 0.0, "high": 0.5},
        "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    },
    "cnn": {"depth": [1, 2], "width_2": [8, 16, 32, 64]},
}


def open_store(optuna_study: optuna.Study, config: StudyConfig) -> StudyStore:
    store = StudyStore(optuna_study, config)
    store.runtime = StudyRuntime(Execution(), "float32")
    return store


def make_config(space: dict[str, Any]) -> StudyConfig:
    return make_study(space, sampler="random", pruner="none")


ScoreFunction = Callable[[Recipe], float]


def run_trials(
    study_store: StudyStore,
    count: int,
    score: ScoreFunction,
    state_of: Callable[[int], TrialState] = lambda _: TrialState.COMPLETED,
) -> None:
    """Run random trials with known values."""
    for number in range(count):
        trial = study_store.ask()
        report = EpochReport(1, 1.0, 0.5, 1.0, score(trial.recipe), 0.01, 1.0)
        study_store.decide(trial, report)
        study_store.tell(trial, TrialResult(state_of(number), (report,), 1.0), "")


def run_search(
    count: int, score: ScoreFunction, state_of: Callable[[int], TrialState] = lambda _: TrialState.COMPLETED
) -> StudyStore:
    store = open_store(optuna.create_study(study_name="toy", direction="maximize"), make_config(TOY_SPACE))
    run_trials(store, count, score, state_of)
    return store


def seed_noise(recipe: Recipe) -> float:
    return recipe.seed % 1000 / 100_000


def score_by_learning_rate(recipe: Recipe) -> float:
    return 0.9 - 0.2 * math.log10(recipe.optimizer.learning_rate / 1e-2) ** 2


def score_by_batch_size(recipe: Recipe) -> float:
    return 0.9 - recipe.batch_size / 1000 + seed_noise(recipe)


def score_by_second_width(recipe: Recipe) -> float:
    widths = recipe.model.widths
    return 0.5 + (widths[1] / 200 if len(widths) > 1 else 0.15) + seed_noise(recipe)


@pytest.mark.parametrize(
    ("quality", "decisive"),
    [
        (score_by_learning_rate, "optimizer.learning_rate"),
        (score_by_batch_size, "batch_size"),
        (score_by_second_width, "model.width_2"),
    ],
)
def test_decisive_hyperparameter_comes_first(quality: ScoreFunction, decisive: str) -> None:
    found = run_search(100, quality).importances()
    shares = list(found.by_name.values())
    assert next(iter(found.by_name)) == decisive
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert found.trials == 100


def test_every_hyperparameter_has_a_share() -> None:
    # Conditional ones included.
    shares = run_search(40, score_by_learning_rate).importances().by_name
    everything = {"batch_size", "label_smoothing", "optimizer.learning_rate", "model.depth", "model.width_2"}
    assert shares.keys() == everything


def test_importances_need_completed_trials() -> None:
    def half(number: int) -> TrialState:
        return TrialState.COMPLETED if number % 2 else TrialState.PRUNED

    with pytest.raises(UserError) as caught:
        run_search(2 * MIN_TRIALS - 2, score_by_learning_rate, half).importances()
    (line,) = caught.value.lines
    assert f"{MIN_TRIALS - 1} completed trials in its space are too few" in line
    assert f"need {MIN_TRIALS}" in line
    assert "search on" in line
    assert caught.value.exit_code == 3
    assert run_search(2 * MIN_TRIALS, score_by_learning_rate, half).importances().trials == MIN_TRIALS


@pytest.mark.filterwarnings("ignore:Target and region quantiles")
def test_equal_trials_give_equal_importances() -> None:
    shares = run_search(MIN_TRIALS, lambda _: 0.5).importances().by_name
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) == pytest.approx(min(shares.values()))


def test_widened_range_keeps_its_importance() -> None:
    stored = optuna.create_study(study_name="toy", direction="maximize")
    run_trials(open_store(stored, make_config(TOY_SPACE)), 60, score_by_learning_rate)
    common = {**TOY_SPACE["common"], "optimizer.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}
    wider = open_store(stored, make_config({**TOY_SPACE, "common": common}))
    run_trials(wider, 20, score_by_learning_rate)
    assert next(iter(wider.importances().by_name)) == "optimizer.learning_rate"

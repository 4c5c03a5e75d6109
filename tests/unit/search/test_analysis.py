"""What a search found out: edges at which its best trials stand, and hyperparameters that decide."""

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
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import EpochReport, State, TrialResult, TrialRow
from fmnist_search.search.analysis import BEST, FEWEST_TRIALS, edges
from fmnist_search.search.study_store import Conditions, Ledger
from fmnist_search.search.suggest import base_recipe, sample
from tests.support.studies import space_tables, study

# -------------------------------------------------------------------------------------------- edges


def rows(*changes: dict[str, Any]) -> list[TrialRow]:
    """Completed trials, the best first."""
    return [
        TrialRow(number, State.COMPLETED, 0.9 - number / 100, 3, Recipe().replace(change), 1.0)
        for number, change in enumerate(changes)
    ]


def five(name: str, *values: Any, **others: Any) -> list[TrialRow]:
    """The five best trials with these values of one hyperparameter; a single value is that of all."""
    spread = values if len(values) > 1 else values * BEST
    return rows(*({**others, name: value} for value in spread))


def space_of(common: dict[str, Any] | None = None, **families: dict[str, Any]) -> Space:
    return parse_space({"common": common or {}, **families})


RATE = space_of({"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}})
SMOOTHING = space_of({"label_smoothing": {"low": 0.1, "high": 0.5}})


@pytest.mark.parametrize(
    ("space", "best", "line"),
    [
        (
            RATE,
            five("optimizer.learning_rate", 0.1, 0.099, 0.095, 0.09, 0.085),
            "optimizer.learning_rate: the best 5 lie within 5% of its upper bound, 0.1; widen it",
        ),
        (
            RATE,
            five("optimizer.learning_rate", 0.001, 0.00101, 0.0011, 0.0012, 0.00125),
            "optimizer.learning_rate: the best 5 lie within 5% of its lower bound, 0.001; widen it",
        ),
        (
            SMOOTHING,
            five("label_smoothing", 0.1, 0.101, 0.105, 0.11, 0.12),
            "label_smoothing: the best 5 lie within 5% of its lower bound, 0.1; widen it",
        ),
        (
            SMOOTHING,
            five("label_smoothing", 0.48, 0.485, 0.49, 0.499, 0.5),
            "label_smoothing: the best 5 lie within 5% of its upper bound, 0.5; widen it",
        ),
        (
            space_of(cnn={"width_1": {"low": 16, "high": 64, "step": 16}}),
            five("model.width_1", 64),
            "model.width_1: the best 5 lie within 5% of its upper bound, 64; widen it",
        ),
        (
            space_of({"batch_size": [128, 256, 64]}),
            five("batch_size", 64),
            "batch_size: the best 5 all take its smallest value, 64; offer smaller ones",
        ),
        (
            space_of({"batch_size": [128, 256, 64]}),
            five("batch_size", 256),
            "batch_size: the best 5 all take its largest value, 256; offer larger ones",
        ),
        (
            space_of(cnn={"depth": [2, 3, 4]}),
            five("model.depth", 4),
            "model.depth: the best 5 all take its largest value, 4; offer larger ones",
        ),
    ],
)
def test_a_domain_at_whose_end_the_best_trials_lie_is_named_with_the_remedy(
    space: Space, best: list[TrialRow], line: str
) -> None:
    assert edges(best, space) == (line,)


@pytest.mark.parametrize(
    ("space", "best"),
    [
        (RATE, five("optimizer.learning_rate", 0.1, 0.099, 0.095, 0.09, 0.02)),
        (RATE, five("optimizer.learning_rate", 0.1, 0.1, 0.1, 0.001, 0.001)),
        # Close in plain numbers, and a quarter of the range away in its logarithm.
        (RATE, five("optimizer.learning_rate", 0.003)),
        (SMOOTHING, five("label_smoothing", 0.1, 0.1, 0.1, 0.1, 0.13)),
        (space_of({"batch_size": [64, 128, 256]}), five("batch_size", 128)),
        (space_of({"batch_size": [64, 128, 256]}), five("batch_size", 64, 64, 64, 64, 128)),
    ],
)
def test_where_the_best_trials_do_not_agree_on_an_end_there_is_none(space: Space, best: list[TrialRow]) -> None:
    assert edges(best, space) == ()


@pytest.mark.parametrize(
    ("space", "best"),
    [
        (space_of(cnn={"dropout": {"low": 0.0, "high": 0.5}}), five("model.dropout", 0.0)),
        (space_of({"augmentation.flip": {"low": 0.5, "high": 1.0}}), five("augmentation.flip", 1.0)),
        (space_of(cnn={"depth": [3, 4, 5]}), five("model.depth", 5)),
        (space_of(cnn={"width_1": {"low": 1, "high": 64}}), five("model.width_1", 1)),
        (space_of(cnn={"hidden": [0, 64, 128]}), five("model.hidden", 0)),
    ],
    ids=["no dropout", "always flipped", "five blocks", "one channel", "no hidden layer"],
)
def test_an_end_that_no_study_file_could_move_is_no_edge(space: Space, best: list[TrialRow]) -> None:
    assert edges(best, space) == ()


def test_choices_that_have_no_order_have_no_edge() -> None:
    common = {"optimizer.name": ["sgd", "adam", "adamw"], "optimizer.nesterov": [True, False]}
    space = space_of(common, cnn={"kernel_1": [3, 5, 7], "convolutions": [1, 2]})
    best = five("optimizer.name", "sgd", **{"model.kernel_1": 7, "model.convolutions": 2})
    assert edges(best, space) == ()


def test_of_two_choices_five_trials_agree_by_chance_and_so_say_nothing() -> None:
    assert edges(five("batch_size", 64), space_of({"batch_size": [64, 128]})) == ()


def test_what_is_pinned_or_not_searched_has_no_edge() -> None:
    assert edges(five("batch_size", 64), space_of({"batch_size": 64})) == ()
    assert edges(five("batch_size", 64), space_of()) == ()


def test_four_trials_are_too_few_for_a_word() -> None:
    best = five("optimizer.learning_rate", 0.1)
    for number in range(BEST):
        assert edges(best[:number], RATE) == ()


def test_only_the_best_five_count() -> None:
    best = five("optimizer.learning_rate", 0.1)
    assert edges([*best, *five("optimizer.learning_rate", 0.01)], RATE) == edges(best, RATE) != ()


def test_every_edge_is_a_line() -> None:
    space = space_of(
        {"batch_size": [64, 128, 256], "label_smoothing": {"low": 0.1, "high": 0.5}}, cnn={"depth": [1, 2, 3]}
    )
    best = five("batch_size", 256, **{"label_smoothing": 0.5, "model.depth": 1})
    assert sorted(line.partition(":")[0] for line in edges(best, space)) == ["batch_size", "label_smoothing"]


def test_a_width_of_blocks_that_some_of_the_best_do_not_have_is_no_edge() -> None:
    space = space_of(cnn={"depth": [1, 2, 3], "width_2": [16, 32, 64]})
    deep = {"model.depth": 2, "model.width_2": 64}
    assert edges(rows(*[deep] * 5), space) == (
        "model.width_2: the best 5 all take its largest value, 64; offer larger ones",
    )
    assert edges(rows(*[deep] * 4, {"model.depth": 1}), space) == ()


# Both families have a depth and a dropout of their own, each under the same name in a recipe.
TWO_FAMILIES = parse_space(
    {
        "common": {"family": ["cnn", "mlp"], "batch_size": [64, 128, 256]},
        "cnn": {"depth": [2, 3, 4], "dropout": {"low": 0.1, "high": 0.5}},
        "mlp": {"depth": [4, 5, 6], "dropout": {"low": 0.5, "high": 0.9}},
    }
)


def test_where_the_best_are_of_several_families_only_what_all_share_has_an_edge() -> None:
    own = {"model.depth": 4, "model.dropout": 0.5, "batch_size": 256}
    mixed = [{"model.family": family, **own} for family in ("cnn", "mlp", "cnn", "mlp", "cnn")]
    line = "batch_size: the best 5 all take its largest value, 256; offer larger ones"
    assert edges(rows(*mixed), TWO_FAMILIES) == (line,)
    assert edges(rows(*mixed[::-1]), TWO_FAMILIES) == (line,)


def test_where_the_best_are_of_one_family_its_own_domains_are_looked_at() -> None:
    cnn, mlp = (edges(five("model.dropout", 0.5, **{"model.family": f}), TWO_FAMILIES) for f in ("cnn", "mlp"))
    assert cnn == ("model.dropout: the best 5 lie within 5% of its upper bound, 0.5; widen it",)
    assert mlp == ("model.dropout: the best 5 lie within 5% of its lower bound, 0.5; widen it",)


def test_trials_outside_the_space_count_as_beyond_its_end() -> None:
    # A study may have been told to try them all the same.
    space = space_of({"optimizer.weight_decay": {"low": 1e-3, "high": 0.1, "log": True}})
    decays = (0.0, 1e-6, 1e-3, 1e-3, 1e-3)
    assert edges(five("optimizer.weight_decay", *decays), space) == (
        "optimizer.weight_decay: the best 5 lie within 5% of its lower bound, 0.001; widen it",
    )
    assert edges(five("optimizer.weight_decay", 0.0, 1.0, 1e-2, 1e-3, 0.1), space) == ()


@settings(max_examples=40)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_whatever_is_searched_its_edges_are_found_without_a_complaint(table: dict[str, Any], seed: int) -> None:
    config = study(table)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    base = base_recipe(config, "float32")
    drawn = [sample(search.ask(), config.space, base, number) for number in range(BEST)]
    best = [TrialRow(number, State.COMPLETED, 0.5, 3, recipe, 1.0) for number, recipe in enumerate(drawn)]
    searched = {name for family in config.space.families for name in config.space.domains(family)}
    assert {line.partition(":")[0] for line in edges(best, config.space)} <= searched


# -------------------------------------------------------------------------------------- importances

TOY: dict[str, Any] = {
    "common": {
        "batch_size": [64, 128, 256],
        "label_smoothing": {"low": 0.0, "high": 0.5},
        "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    },
    "cnn": {"depth": [1, 2], "width_2": [8, 16, 32, 64]},
}


def opened(stored: optuna.Study, config: StudyConfig) -> Ledger:
    ledger = Ledger(stored, config)
    ledger.conditions = Conditions(Execution(), "float32")
    return ledger


def searching(space: dict[str, Any]) -> StudyConfig:
    return study(space, sampler="random", pruner="none")


Quality = Callable[[Recipe], float]


def play(
    ledger: Ledger, count: int, quality: Quality, state_of: Callable[[int], State] = lambda _: State.COMPLETED
) -> None:
    """So many random trials whose values are known."""
    for number in range(count):
        trial, recipe = ledger.ask()
        report = EpochReport(1, 1.0, 0.5, 1.0, quality(recipe), 0.01, 1.0)
        ledger.should_prune(trial, report)
        ledger.tell(trial, TrialResult(state_of(number), (report,), 1.0), "")


def played(count: int, quality: Quality, state_of: Callable[[int], State] = lambda _: State.COMPLETED) -> Ledger:
    ledger = opened(optuna.create_study(study_name="toy", direction="maximize"), searching(TOY))
    play(ledger, count, quality, state_of)
    return ledger


def noise(recipe: Recipe) -> float:
    return recipe.seed % 1000 / 100_000


def by_rate(recipe: Recipe) -> float:
    return 0.9 - 0.2 * math.log10(recipe.optimizer.learning_rate / 1e-2) ** 2


def by_batch_size(recipe: Recipe) -> float:
    return 0.9 - recipe.batch_size / 1000 + noise(recipe)


def by_second_width(recipe: Recipe) -> float:
    widths = recipe.model.widths
    return 0.5 + (widths[1] / 200 if len(widths) > 1 else 0.15) + noise(recipe)


@pytest.mark.parametrize(
    ("quality", "decisive"),
    [(by_rate, "optimizer.learning_rate"), (by_batch_size, "batch_size"), (by_second_width, "model.width_2")],
)
def test_the_hyperparameter_that_decides_comes_first(quality: Quality, decisive: str) -> None:
    found = played(100, quality).importances()
    shares = list(found.shares.values())
    assert next(iter(found.shares)) == decisive
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert found.trials == 100


def test_every_hyperparameter_of_the_space_has_a_share() -> None:
    # What only some recipes have as well.
    shares = played(40, by_rate).importances().shares
    everything = {"batch_size", "label_smoothing", "optimizer.learning_rate", "model.depth", "model.width_2"}
    assert shares.keys() == everything


def test_importances_need_completed_trials() -> None:
    def half(number: int) -> State:
        return State.COMPLETED if number % 2 else State.PRUNED

    with pytest.raises(UserError) as caught:
        played(2 * FEWEST_TRIALS - 2, by_rate, half).importances()
    (line,) = caught.value.lines
    assert f"{FEWEST_TRIALS - 1} completed trials are too few" in line
    assert f"need {FEWEST_TRIALS}" in line
    assert "search on" in line
    assert caught.value.exit_code == 3
    assert played(2 * FEWEST_TRIALS, by_rate, half).importances().trials == FEWEST_TRIALS


@pytest.mark.filterwarnings("ignore:Target and region quantiles")
def test_where_all_trials_are_alike_nothing_is_more_important_than_the_rest() -> None:
    shares = played(FEWEST_TRIALS, lambda _: 0.5).importances().shares
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) == pytest.approx(min(shares.values()))


def test_a_range_that_was_widened_keeps_its_importance() -> None:
    stored = optuna.create_study(study_name="toy", direction="maximize")
    play(opened(stored, searching(TOY)), 60, by_rate)
    common = {**TOY["common"], "optimizer.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}
    wider = opened(stored, searching({**TOY, "common": common}))
    play(wider, 20, by_rate)
    assert next(iter(wider.importances().shares)) == "optimizer.learning_rate"

"""The contract of samplers in a study whose budget refuses networks before they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import optuna
import pytest

from fmnist_search.config.samplers import FreezeThaw, Sampler
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import network_size
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_list import list_studies
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.study.network_budget import (
    MAX_REFUSALS,
    RANDOM_AFTER,
    NetworkBudget,
    check_space,
    slow_epoch,
)
from tests.support.studies import make_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

SAMPLERS = [settings() for settings in get_args(get_args(Sampler)[0]) if settings().name != "freeze-thaw"]
LIMIT = 100_000
SPACE: dict[str, Any] = {
    "common": {"label_smoothing": {"low": 0.0, "high": 0.2}},
    "mlp": {"depth": 1, "width": {"low": 16, "high": 512, "log": True}},
}
"""An MLP of a width of at most 125 has so few multiply-adds as `LIMIT`: three fifths of the space."""


def make_config(sampler: Any, limit: int = LIMIT) -> StudyConfig:
    budget = {"trials": 30, "epochs": 2, "max_mult_adds": limit}
    space = SPACE
    if sampler.name == "grid":
        space = {**SPACE, "common": {"label_smoothing": [0.0, 0.1]}, "mlp": {"depth": 1, "width": [16, 64, 256, 512]}}
    return make_study(space, sampler=sampler.model_dump(), budget=budget)


def search(config: StudyConfig, asks: int, storage: optuna.storages.BaseStorage | None = None) -> list[TrialRecord]:
    """Ask for so many trials, refuse those that the budget refuses, and let less smoothing be better."""
    store = StudyStore.open_in(storage or optuna.storages.InMemoryStorage(), config)
    store.runtime = StudyRuntime(Execution(), "float32")
    networks = NetworkBudget(config, store.trial_records())
    store.filter_recipes(networks.accepts)
    for _ in range(asks):
        asked = store.ask(at_random=networks.samples_at_random)
        result = networks.judge(asked)
        if result is None:
            size = network_size(asked.recipe.model)
            report = EpochReport(1, 1.0, 0.5, 1.0, 0.9 - asked.recipe.label_smoothing, 0.1, 1.0)
            store.decide(asked, report)
            result = TrialResult(TrialState.COMPLETED, (report,), 1.0, size.parameters, mult_adds=size.mult_adds)
        networks.add(store.tell(asked, result, ""))
    return store.trial_records()


def is_refused(record: TrialRecord) -> bool:
    return record.state is TrialState.REFUSED


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(one, id=one.name, marks=pytest.mark.slow if one.name in ("gp", "cmaes") else ()) for one in SAMPLERS],
)
def test_no_network_over_the_limit_is_trained_and_a_search_that_was_resumed_equals_one_that_was_not(
    sampler: Any, tmp_path: Path
) -> None:
    config, url = make_config(sampler), f"sqlite:///{tmp_path / 'optuna.db'}"
    asks = 8 if sampler.name == "grid" else 16
    for count in (1, 5, asks - 6):
        records = search(config, count, DriverStorage(open_storage(url), None, print))
    assert len(records) == asks
    assert records == search(config, asks)
    assert {is_refused(record) for record in records} == {True, False}
    for record in records:
        assert is_refused(record) == (record.mult_adds > LIMIT)
        assert record.mult_adds == network_size(record.recipe.model).mult_adds
    for record in filter(is_refused, records):
        assert (record.value, record.curve, record.epochs, record.is_final) == (None, (), 0, False)
        assert record.reason == f"{record.mult_adds:,} multiply-adds are more than budget.max_mult_adds = {LIMIT:,}"
    (entry,) = list_studies(url)
    assert entry.trials == sum(not is_refused(record) for record in records)


def test_tpe_learns_which_networks_are_refused() -> None:
    def refused(name: str) -> int:
        sampler = next(one for one in SAMPLERS if one.name == name)
        return sum(map(is_refused, search(make_config(sampler, 60_000), 60)))

    assert refused("tpe") < refused("random") / 2


def test_freeze_thaw_proposes_no_network_that_is_refused() -> None:
    records = search(make_config(FreezeThaw(), limit=25_000), 12)  # an eighth of the space
    assert all(record.state is TrialState.COMPLETED and record.mult_adds <= 25_000 for record in records)
    assert len(records) == 12


def test_many_refusals_in_a_row_end_the_search_but_not_that_of_a_grid() -> None:
    for name in ("random", "grid"):
        config = make_config(next(one for one in SAMPLERS if one.name == name), limit=1)
        networks = NetworkBudget(config, ())
        asked = AskedTrial(0, Recipe(), {}, None)  # type: ignore[arg-type]
        at_random = []
        for _ in range(MAX_REFUSALS):
            assert not networks.is_spent
            assert networks.judge(asked)
            at_random.append(networks.samples_at_random)
        assert networks.is_spent == (name == "random")
        assert not any(at_random[: RANDOM_AFTER - 1])
        assert sum(at_random) == (MAX_REFUSALS - RANDOM_AFTER) // 2


@pytest.mark.parametrize(
    ("seconds", "size", "is_refused"),
    [
        ((1.0, 2.0, 9.0), 1.0, False),  # the fastest is fast enough
        ((6.0, 7.0, 9.0), 1.0, True),
        ((4.0, 7.0, 9.0), 1.9, True),  # so are 7.6 s for 1.9 times the multiply-adds
        ((9.0, 9.0), 1.0, False),  # too few to tell
        ((9.0, 9.0, 9.0), 2.5, False),  # none is similar
    ],
)
def test_a_network_is_refused_that_takes_too_long_at_the_speed_of_similar_ones(
    seconds: tuple[float, ...], size: float, is_refused: bool
) -> None:
    config = make_study(SPACE, budget={"trials": 9, "max_seconds_per_epoch": 5.0})
    recipe = Recipe()
    mult_adds = int(network_size(recipe.model).mult_adds / size)
    records = [
        TrialRecord(n, TrialState.PRUNED, 0.5, 1, recipe, each, mult_adds=mult_adds, seconds_per_epoch=each)
        for n, each in enumerate(seconds)
    ]
    asked = AskedTrial(9, recipe, {}, None)  # type: ignore[arg-type]
    result = NetworkBudget(config, records).judge(asked)
    assert (result is not None) == is_refused
    if result:
        assert (result.reason or "").endswith(" s an epoch are more than budget.max_seconds_per_epoch = 5")


def test_a_trial_that_has_begun_is_not_refused() -> None:
    config = make_config(SAMPLERS[0], limit=1)
    asked = AskedTrial(0, Recipe(), {}, None, curve={1: 0.5})  # type: ignore[arg-type]
    assert NetworkBudget(config, ()).judge(asked) is None


def test_the_first_epoch_decides_whether_a_trial_is_fast_enough() -> None:
    first, second = (EpochReport(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, 3.0) for epoch in (1, 2))
    assert slow_epoch(first, 2.5) == "its first epoch took 3 s, more than budget.max_seconds_per_epoch = 2.5"
    assert [slow_epoch(*each) for each in ((first, 3.0), (first, None), (second, 2.5))] == [None] * 3


@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_budget_that_allows_no_network_of_the_space_is_an_error(name: str) -> None:
    config = make_config(next(one for one in SAMPLERS if one.name == name), limit=12_000)
    with pytest.raises(UserError, match=r"12,000 refuses all of .* networks .*; the smallest has 12,\d\d\d multiply"):
        check_space(config)
    check_space(make_config(config.sampler, limit=13_000))  # that of the smallest width alone

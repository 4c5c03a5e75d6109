"""Which changes of a study file keep its trials comparable."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.comparability import check_comparable
from fmnist_search.errors import UserError
from tests.support.studies import make_study
from tests.unit.config.study_files import TWO_FAMILIES, load_study

SUBSET_STUDY = f"{TWO_FAMILIES}[data]\ntrain_images = 1000\n"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("seed", 1, "seed"),
        ("budget.epochs", 4, "budget.epochs"),
        ("objective.metrics", ["val_accuracy", "parameters"], "objective.metrics"),
        ("data.train_images", 2_000, "data.train_images"),
        ("data.validation", 0.5, "data.validation"),
        ("data.seed", 1, "data.seed"),
        ("batch_size", [64, 256], "space.common.batch_size"),
        # For Optuna, the same choices in another order are another domain.
        ("batch_size", [128, 64], "space.common.batch_size"),
        ("batch_size", 64, "space.common.batch_size"),
        ("optimizer.learning_rate", {"low": 1e-3, "high": 1e-1}, "space.common.optimizer.learning_rate"),
        ("label_smoothing", 0.1, "space.common.label_smoothing"),
        ("model.kernel_1", [3, 7], "space.cnn.kernel_1"),
        ("model.width", {"low": 64, "high": 128, "step": 8}, "space.mlp.width"),
        ("model.dropout", 0.1, "space.mlp.dropout"),
        ("space.common.family", ["mlp", "cnn"], "space.common.family"),
    ],
)
def test_change_that_makes_trials_incomparable_is_refused_by_its_key(
    name: str, value: object, key: str, tmp_path: Path
) -> None:
    stored, given_config = load_study(tmp_path, SUBSET_STUDY), load_study(tmp_path, SUBSET_STUDY, {name: value})
    assert stored.comparability_key().get(key) != given_config.comparability_key().get(key)
    with pytest.raises(UserError) as caught:
        check_comparable(stored, given_config)
    assert any(line.startswith(f"{key}: is ") for line in caught.value.lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget.trials", 99),
        ("budget.minutes", 3),
        ("budget.failures", 1),
        ("budget.losses", 1),
        ("execution.backend", "ray"),
        ("execution.ray", {"address": "head:6379", "resources": {"gpu": 1}}),
        ("execution.workers", 2),
        ("question", "Why?"),
        ("sampler", "random"),
        ("sampler", {"name": "tpe", "startup_trials": 3}),
        ("pruner", "median"),
        ("finalists.recipes", 0),
        ("finalists.epochs", 99),
        ("experiment", "other"),
        ("name", "other"),
    ],
)
def test_other_changes_are_accepted(name: str, value: object, tmp_path: Path) -> None:
    stored, given_config = load_study(tmp_path, SUBSET_STUDY), load_study(tmp_path, SUBSET_STUDY, {name: value})
    assert stored.comparability_key() == given_config.comparability_key()
    assert check_comparable(stored, given_config) == []


def test_wider_range_is_accepted_with_a_line(tmp_path: Path) -> None:
    stored = load_study(tmp_path, SUBSET_STUDY)
    wider = load_study(tmp_path, SUBSET_STUDY, {"optimizer.learning_rate": {"low": 1e-3, "high": 1.0, "log": True}})
    key = "space.common.optimizer.learning_rate"
    assert check_comparable(stored, wider) == [f"{key} is wider now: 0.001 to 1.0, log; it was 0.001 to 0.1, log"]
    with pytest.raises(UserError, match="a range may be widened, nothing else"):
        check_comparable(wider, stored)


@settings(max_examples=60)
@given(st.floats(1e-6, 1), st.sampled_from(["low", "high", "step"]))
def test_last_digit_of_a_range_counts(low: float, end: str) -> None:
    table = {"low": low, "high": 2 * low, "step": low / 4}
    other = {**table, end: math.nextafter(table[end], math.inf)}
    texts = [
        make_study({"common": {"averaging.horizon": domain}}).comparability_key()["space.common.averaging.horizon"]
        for domain in (table, other)
    ]
    assert texts[0] != texts[1]

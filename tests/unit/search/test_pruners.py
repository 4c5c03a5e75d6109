"""The pruners that keep what they compare decide as Optuna's own, whatever trials report and in whatever order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.pruners import BasePruner, HyperbandPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from fmnist_search.config.pruners import Halving, Hyperband, Median, Percentile, Pruner
from fmnist_search.search.pruners import make_pruner

EPOCHS = 6

PAIRS: list[tuple[Pruner, BasePruner]] = [
    (Halving(min_epochs=1, reduction_factor=2), SuccessiveHalvingPruner(1, 2)),
    (Halving(min_epochs=2, reduction_factor=3), SuccessiveHalvingPruner(2, 3)),
    (Hyperband(min_epochs=1, reduction_factor=2), HyperbandPruner(1, EPOCHS, 2)),
    (Median(startup_trials=2, min_trials=2), optuna.pruners.MedianPruner(2, 1, n_min_trials=2)),
    (Percentile(startup_trials=1, percentile=30.0, warmup_epochs=1), PercentilePruner(30.0, 1, 2)),
]

VALUES = st.floats(0, 1) | st.sampled_from([0.25, 0.5, 0.75, math.nan, math.inf])
"""Accuracies, of which many are equal."""


@dataclass(frozen=True)
class Turn:
    """What happens next: the trial at this place among the running ones reports a value, or ends without one."""

    place: int
    value: float
    is_lost: bool
    is_stopped_anew: bool


def one_in(count: int) -> st.SearchStrategy[bool]:
    """Return a strategy that is True in one of so many cases."""
    return st.sampled_from([False] * (count - 1) + [True])


TURNS = st.lists(st.builds(Turn, st.integers(0, 4), VALUES, one_in(10), one_in(20)), min_size=20, max_size=60)


def decide(pruners: Sequence[BasePruner], turns: Sequence[Turn]) -> tuple[list[tuple[int, int, bool]], list[object]]:
    """Return each decision (trial, epoch, pruned) and what is stored of the trials, with one study.

    Where a turn says so, the search goes on with the next of the pruners, as after a restart.
    """
    study = optuna.create_study(direction="maximize", study_name="small")
    upcoming = iter(pruners)
    study.pruner = next(upcoming)
    running: list[optuna.Trial] = []
    decisions: list[tuple[int, int, bool]] = []
    for turn in turns:
        if turn.is_stopped_anew:
            study.pruner = next(upcoming, study.pruner)
        while len(running) < 5:
            running.append(study.ask())
        trial = running[turn.place]
        epoch = len(study.get_trials(deepcopy=False)[trial.number].intermediate_values) + 1
        if turn.is_lost:
            study.tell(running.pop(turn.place), state=TrialState.FAIL)
            continue
        trial.report(turn.value, epoch)
        is_pruned = bool(trial.should_prune())
        decisions.append((trial.number, epoch, is_pruned))
        if is_pruned or epoch == EPOCHS:
            is_complete = not is_pruned and not math.isnan(turn.value)
            study.tell(
                trial, turn.value if is_complete else None, TrialState.COMPLETE if is_complete else TrialState.FAIL
            )
            running.remove(trial)
    return decisions, [(trial.system_attrs, trial.state) for trial in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize(("settings", "reference"), PAIRS, ids=lambda pruner: getattr(pruner, "name", ""))
@given(turns=TURNS)
@hypothesis.settings(max_examples=20)
def test_decisions_are_those_of_optuna(settings: Pruner, reference: BasePruner, turns: list[Turn]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's for a trial that has reported only NaN
        assert decide([make_pruner(settings, EPOCHS) for _ in range(9)], turns) == decide([reference], turns)
